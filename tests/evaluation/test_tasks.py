import pytest
import torch
from torch import Tensor, tensor

from tips_ray.config.evaluation import NeighboursConfig
from tips_ray.evaluation.classification import LabelledEmbeddings, knn_accuracy
from tips_ray.evaluation.depth import linear_depth_rmse
from tips_ray.evaluation.features import image_features, text_features
from tips_ray.evaluation.retrieval import retrieval
from tips_ray.evaluation.segmentation import Classes
from tips_ray.evaluation.zero_shot import class_embeddings, zero_shot_accuracy, zero_shot_segmentation
from tips_ray.models import ImageFeatures, image_encoder, text_encoder

SIZES = {"width": 32, "depth": 1, "num_heads": 2, "ffn_hidden": 64}


def _features(images: int, seed: int) -> ImageFeatures:
    generator = torch.Generator().manual_seed(seed)
    return ImageFeatures(
        *(torch.randn(*shape, generator=generator) for shape in ((images, 4), (images, 4), (images, 9, 4)))
    )


def _depth(features: ImageFeatures) -> torch.Tensor:
    """Log depth is linear in the patch: exp(0.5 + 0.3 f0 - 0.2 f2), constant over each 7 x 7 patch."""
    patches = features.patches_BLD
    depth = (0.5 + 0.3 * patches[..., 0] - 0.2 * patches[..., 2]).exp().view(-1, 3, 3)
    return depth.repeat_interleave(7, 1).repeat_interleave(7, 2)


def test_the_depth_probe_finds_a_linear_law_and_noise_does_not():
    train, test = _features(200, 0), _features(20, 1)
    centre = torch.zeros_like(_depth(test))
    centre[:, 3::7, 3::7] = _depth(test)[:, 3::7, 3::7]  # judged at patch centres, where upsampling is exact
    assert linear_depth_rmse(train, _depth(train), test, centre, (3, 3)) < 0.02
    assert linear_depth_rmse(_features(200, 5), _depth(train), test, centre, (3, 3)) > 0.4


def test_retrieval_counts_both_directions():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0.1, 0], [1.0, 0.2, 0], [0, 0, 1]])  # text 1 is nearer to image 0 than to its own
    scores = retrieval(images, texts)
    assert scores == {
        "image_to_text_recall_at_1": 1.0,
        "text_to_image_recall_at_1": 2 / 3,
    }


def test_features_do_not_depend_on_the_batch_size():
    encoder, images = (
        image_encoder("S", image_size_px=28, **SIZES),
        torch.randint(0, 256, (5, 28, 28, 3), dtype=torch.uint8),
    )
    torch.testing.assert_close(
        image_features(encoder, images, 2), image_features(encoder, images, 5), atol=1e-6, rtol=0
    )
    texts, ids = text_encoder("S", vocab_size=20, **SIZES), torch.randint(0, 20, (5, 8))
    torch.testing.assert_close(text_features(texts, ids, 2), text_features(texts, ids, 5), atol=1e-6, rtol=0)
    torch.testing.assert_close(text_features(texts, ids).norm(dim=1), torch.ones(5))


def test_any_of_an_images_captions_counts_and_each_caption_asks():
    """Image 0 has texts 0 and 2; text 2 lies nearer to image 1."""
    texts = tensor([[1.0, 0.2], [0.0, 1], [0.3, 1]])
    scores = retrieval(torch.eye(2), texts, tensor([0, 1, 0]), (1, 2, 3))
    assert scores == {
        "image_to_text_recall_at_1": 1.0,
        "image_to_text_recall_at_2": 1.0,
        "image_to_text_recall_at_3": 1.0,
        "text_to_image_recall_at_1": 2 / 3,
        "text_to_image_recall_at_2": 1.0,
    }
    with pytest.raises(ValueError, match="1 queries of 2 have no positive"):
        retrieval(torch.eye(2), texts, tensor([0, 0, 0]))


def test_neighbours_beyond_the_bank_are_left_out():
    bank = LabelledEmbeddings(tensor([[1.0, 0], [0, 1], [0.1, 1]]), tensor([0, 1, 1]))
    query = LabelledEmbeddings(tensor([[2.0, 0.1]]), tensor([0]))
    config = NeighboursConfig(data="toy", neighbours=(1, 3, 10), temperature=10)
    assert knn_accuracy(bank, query, 2, config) == {"accuracy_k1": 1.0, "accuracy_k3": 0.0}
    with pytest.raises(ValueError, match="all exceed the 3 training images"):
        knn_accuracy(bank, query, 2, NeighboursConfig(data="toy"))


def _embed(texts) -> Tensor:
    """A cat is right and a dog is up, each a little turned by the template."""
    found = [[1.0, 0.0] if "cat" in text else [0.0, 1.0] for text in texts]
    turned = [[x + 0.1 * text.startswith("b"), y] for (x, y), text in zip(found, texts, strict=True)]
    return torch.nn.functional.normalize(tensor(turned), dim=1)


def test_a_class_is_the_mean_of_its_templates():
    classes = class_embeddings(_embed, ["cat", "dog"], ["a {}", "b {}"])
    angle = tensor(0.1).atan() / 2  # half-way between two unit vectors
    torch.testing.assert_close(classes, torch.stack([tensor([1.0, 0.0]), torch.stack([angle.sin(), angle.cos()])]))
    assert zero_shot_accuracy(tensor([[5.0, 1], [1, 5], [1, 2]]), classes, tensor([0, 1, 0]))["accuracy"] == 2 / 3
    with pytest.raises(ValueError, match="template 'a cat' must have a {}"):
        class_embeddings(_embed, ["cat"], ["a cat"])


def test_zero_shot_segmentation_gives_each_pixel_its_nearest_class():
    patches, labels = tensor([[[3.0, 0], [0, 1], [0, 1], [0, 1]]]), tensor([[0, 0, 9, 1], [0, 0, 1, 1]])
    found = zero_shot_segmentation(patches, torch.eye(2), [labels], Classes(2, 9))
    assert found.predictions[0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert found.scores["miou"] == pytest.approx((2 / 4 + 3 / 5) / 2)
