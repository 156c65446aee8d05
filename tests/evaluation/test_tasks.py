import errno
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, tensor
from toy_model import CAPTIONS, toy_model

from tips_ray.config.evaluation import NeighboursConfig, SuiteConfig
from tips_ray.evaluation import encoders, features, zero_shot
from tips_ray.evaluation.classification import LabelledEmbeddings, knn_accuracy
from tips_ray.evaluation.datasets import Dataset, Examples
from tips_ray.evaluation.depth import linear_depth_rmse
from tips_ray.evaluation.encoders import Encoder, TipsEncoder
from tips_ray.evaluation.features import FrozenData, Reads, Scratch, ScratchFile, encoded, encoding_here
from tips_ray.evaluation.retrieval import retrieval
from tips_ray.evaluation.segmentation import Classes
from tips_ray.evaluation.suite_tasks import tasks_here
from tips_ray.evaluation.zero_shot import (
    class_embeddings,
    windowed_size_px,
    zero_shot_accuracy,
    zero_shot_segmentation,
)


def _rows(images: int, seed: int) -> Tensor:
    """Random patches of a 3 x 3 grid."""
    return torch.randn(images, 9, 4, generator=torch.Generator().manual_seed(seed))


def _depth(rows_NLD: Tensor) -> Tensor:
    """Depth with a logarithm linear in the patch: exp(0.5 + 0.3 f0 - 0.2 f2), constant over each 7 x 7 patch."""
    depth = (0.5 + 0.3 * rows_NLD[..., 0] - 0.2 * rows_NLD[..., 2]).exp().view(-1, 3, 3)
    return depth.repeat_interleave(7, 1).repeat_interleave(7, 2)


def test_the_depth_probe_finds_a_linear_law_and_noise_does_not():
    train, test = _rows(200, 0), _rows(20, 1)
    centre = torch.zeros_like(_depth(test))
    centre[:, 3::7, 3::7] = _depth(test)[:, 3::7, 3::7]  # compared at patch centres, where upsampling is exact
    assert linear_depth_rmse(train, _depth(train), test, centre) < 0.02
    assert linear_depth_rmse(_rows(200, 5), _depth(train), test, centre) > 0.4


def test_retrieval_counts_both_directions():
    images = torch.eye(3)
    texts = torch.tensor([[1.0, 0.1, 0], [1.0, 0.2, 0], [0, 0, 1]])  # text 1 is nearer to image 0 than to image 1
    scores = retrieval(images, texts)
    assert scores == {
        "image_to_text_recall_at_1": 1.0,
        "text_to_image_recall_at_1": 2 / 3,
    }


def test_features_do_not_depend_on_the_batch_size():
    encoder = TipsEncoder.of_model(toy_model())
    images = torch.randint(0, 256, (5, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_two, by_five = (encoded(encoding_here(encoder, size), images).features for size in (2, 5))
    torch.testing.assert_close(by_two, by_five, atol=1e-6, rtol=0)
    whole = encoder.features(images.permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(by_five, whole, atol=1e-6, rtol=0)


def test_patches_in_half_precision_are_those_of_full_precision_rounded(tmp_path):
    encoder = TipsEncoder.of_model(toy_model())
    images = torch.randint(0, 256, (3, 56, 56, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoding = encoding_here(encoder, 2)
    scratches = Scratch(str(tmp_path), torch.float16), None
    half, full = (encoded(encoding, images, scratch=scratch).features for scratch in scratches)
    assert half.patches_BLD.dtype == torch.float16 and torch.equal(half.patches_BLD, full.patches_BLD.half())
    assert torch.equal(half.embeddings["cls_web"], full.embeddings["cls_web"])
    assert not list(tmp_path.iterdir())  # the file is unlinked
    alone = FrozenData(encoder, Dataset(Examples(images)), encoding, reads=Reads(patches=False)).test
    assert not len(alone.patches_BLD) and torch.equal(alone.embeddings["cls_web"], full.embeddings["cls_web"])
    last = encoder.layers(images.permute(0, 3, 1, 2) / 255)[3]
    torch.testing.assert_close(encoded(encoding, images, Reads(layers=True)).layers[3], last.float(), atol=1e-5, rtol=0)


def test_features_without_room_on_the_disk_are_refused(monkeypatch, tmp_path):
    def full(file: int, start: int, needed: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features.os, "posix_fallocate", full)
    monkeypatch.setattr(features.shutil, "disk_usage", lambda folder: SimpleNamespace(free=10**9))
    with pytest.raises(ValueError, match=r"features of patches need 8.0 GB, .* has 1.0 GB free: set scratch to a"):
        ScratchFile(2000, Scratch(str(tmp_path))).append(torch.zeros(1, 1000, 1000))
    assert not list(tmp_path.iterdir())


def test_texts_do_not_depend_on_how_many_go_together(monkeypatch):
    encoder = TipsEncoder.of_model(toy_model())
    together = encoder.texts(CAPTIONS)
    monkeypatch.setattr(encoders, "TEXTS_AT_ONCE", 4)
    torch.testing.assert_close(encoder.texts(CAPTIONS), together, atol=1e-6, rtol=0)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6))


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
    """Embeddings of texts: a cat points right and a dog up, each turned a little by the template."""
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


class _Brightness(Encoder):
    """Encoder with one-pixel patches in windows of 2 x 2; a pixel's embedding is its red and its green."""

    image_size_px, patch_size_px, embeddings, has_text_patches = 2, 1, (), True

    @property
    def networks(self):
        return ()

    def features(self, images_BCHW):
        raise NotImplementedError

    def text_patches(self, images_BCHW: Tensor) -> Tensor:
        assert images_BCHW.shape[2:] == (2, 2)
        self.seen = getattr(self, "seen", 0) + len(images_BCHW)
        return images_BCHW[:, :2].flatten(2).mT


def _of_colours(red_and_green: list, labels: list) -> Examples:
    pixels = torch.tensor(red_and_green, dtype=torch.uint8)
    images = torch.nn.functional.pad(pixels, (0, 1))[None]
    return Examples(images, [torch.tensor(labels)])


def test_zero_shot_segmentation_gives_each_pixel_its_nearest_class():
    examples = _of_colours([[[3, 0], [0, 1]], [[0, 1], [0, 1]]], [[0, 0, 9, 1], [0, 0, 1, 1]])
    found = zero_shot_segmentation(encoding_here(_Brightness(), 4), examples, torch.eye(2), Classes(2, 9), 1)
    assert found.predictions[0].tolist() == [[0, 0, 1, 1], [1, 1, 1, 1]]
    assert found.scores["miou"] == pytest.approx((2 / 4 + 3 / 5) / 2)


def test_windows_cover_a_larger_image_and_share_what_overlaps():
    colours = [[[9, 0], [9, 0], [0, 9]], [[9, 0], [9, 0], [0, 9]], [[0, 9], [0, 9], [0, 9]]]
    examples = _of_colours(colours, [[0, 0, 1], [0, 0, 1], [1, 1, 1]])
    encoder = _Brightness()
    assert windowed_size_px(encoder, 2) == 3 and windowed_size_px(encoder, 1) == 2
    found = zero_shot_segmentation(encoding_here(encoder, 4), examples, torch.eye(2), Classes(2, None), 2)
    assert found.scores["miou"] == 1 and encoder.seen == 4


def test_cosines_of_windows_are_averaged():
    """Two windows see the middle column; in one of them the encoder takes it for the other class."""

    class Turning(_Brightness):
        def text_patches(self, images_BCHW):
            patches = super().text_patches(images_BCHW)
            return patches.flip(-1) if images_BCHW[0, 2, 0, 0] else patches

    examples = _of_colours([[[9, 0]] * 3] * 3, [[0] * 3] * 3)
    examples.images_NSS3[0, :, 1:, 2] = 255  # blue: windows of the right half are turned
    cosines = zero_shot._cosines(Turning(), examples.images_NSS3, torch.eye(2), 2)
    assert cosines["cosines"][0, 0].tolist() == [[1, 0], [0.5, 0.5], [0, 1]]


class _Counted(TipsEncoder):
    """Counts the images that pass through the image encoder."""

    passed = 0

    def features(self, images_BCHW):
        self.passed += len(images_BCHW)
        return super().features(images_BCHW)

    def features_with_layers(self, images_BCHW):
        self.passed += len(images_BCHW)
        return super().features_with_layers(images_BCHW)


def test_an_image_passes_once_for_all_probes_of_a_model_and_size():
    """Five kinds of probes on patches, layers and embeddings of one data set: 7 + 5 images, each once."""
    small = {"probe": {"steps": 2, "learning_rates": [0.1]}, "train_size_px": 14}
    deep = {"decoder": {"steps": 2, "hidden": 4}, "train_size_px": 14}
    kinds = {
        "segmentation": small,
        "depth": small,
        "dpt_depth": deep,
        "normals": deep,
        "neighbours": {"neighbours": [1]},
    }
    suite = SuiteConfig.model_validate(
        {
            "data": {"scenes": {"kind": "scenes", "train": 7, "test": 5}},
            "tasks": {kind: {"kind": kind, "data": "scenes", **keys} for kind, keys in kinds.items()},
        }
    )
    encoder = _Counted.of_model(toy_model())
    ended = list(tasks_here(encoder, suite, encoding_here(encoder, 4), list(kinds)))
    assert [task.name for task in ended if task.record["scores"]] == list(kinds)
    assert isinstance(encoder, _Counted) and encoder.passed == 7 + 5


def test_features_of_one_pass_with_layers_are_those_of_a_pass_without():
    encoder = TipsEncoder.of_model(toy_model())
    images = torch.rand(2, 3, 56, 56, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features, layers = encoder.features_with_layers(images)
    torch.testing.assert_close(features, encoder.features(images), atol=1e-9, rtol=0)
    assert len(layers) == 4 and layers[0].shape == (2, 16, 32)
