"""Linear probes and the tasks that train them."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import ClassificationConfig, DepthConfig, ProbeConfig, SegmentationConfig
from tips_ray.evaluation.classification import LabelledEmbeddings, linear_accuracy
from tips_ray.evaluation.dense import DenseExamples, squashed, upsampled
from tips_ray.evaluation.depth_bins import depth_of, gradient_loss, linear_depth, sig_loss
from tips_ray.evaluation.probe import split_places, trained_probes
from tips_ray.evaluation.segmentation import Classes, classes_of, linear_segmentation, miou

PROBE = ProbeConfig(learning_rates=(1e-2, 5e-2), steps=60, batch_images=8)
SEGMENTATION = SegmentationConfig(data="toy", probe=PROBE, train_size_px=9)


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _labelled(images: int, seed: int) -> DenseExamples:
    """Examples on a 3 x 3 grid, 6 x 9 pixels; a patch's class is the largest of three linear functions of it."""
    patches = _noise(images, 9, 4, seed=seed)
    classes = (patches @ _noise(4, 3, seed=99)).argmax(dim=2).view(images, 3, 3)
    return DenseExamples(patches, list(classes.repeat_interleave(2, 1).repeat_interleave(3, 2)))


def test_probes_side_by_side_are_those_trained_alone():
    rows, targets = _noise(12, 3, 4), torch.randint(2, (12, 3), generator=torch.Generator().manual_seed(1))

    def loss(outputs, batch):
        return torch.stack([F.cross_entropy(one.mT, targets[batch]) for one in outputs])

    def weights(rates):
        config = ProbeConfig(learning_rates=rates, steps=20, batch_images=5)
        return trained_probes(rows.__getitem__, torch.arange(12), 2, loss, config, seed=3).weights

    together = weights((1e-3, 1e-1))
    for found, rate in zip(together, (1e-3, 1e-1), strict=True):
        torch.testing.assert_close(found, weights((rate,))[0], atol=1e-6, rtol=0)
    assert not torch.allclose(*together, atol=1e-3)


@pytest.mark.parametrize(("images", "expected"), [(10, [4, 9]), (3, [2]), (2, [1])])
def test_held_out_images_are_never_trained_on(images, expected):
    learned, held_out = split_places(images, ProbeConfig())
    assert held_out.tolist() == expected
    assert sorted(learned.tolist() + expected) == list(range(images))


def test_one_image_cannot_be_split():
    with pytest.raises(ValueError, match="1 training images; a probe needs at least 2"):
        split_places(1, ProbeConfig())


def test_maps_and_patches_meet_on_the_same_pixels():
    assert squashed([torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])], 2)[0].tolist() == [[2, 4], [6, 8]]
    small, large = torch.ones(1, 1, dtype=torch.uint8), torch.full((1, 1), 300, dtype=torch.int32)
    assert squashed([small, large], 1).flatten().tolist() == [1, 300]
    steps = upsampled(torch.tensor([0.0, 0, 1, 1])[None, :, None], (4, 2))[0, 0, :, 0]
    assert steps.tolist() == [0, 0.25, 0.75, 1]  # two rows of patches, half-pixel centres


def test_segmentation_finds_a_linear_law_and_noise_does_not():
    train, test, classes = _labelled(60, 0), _labelled(12, 1), Classes(3, None)
    found = linear_segmentation(train, test, classes, SEGMENTATION)
    assert found.scores["miou"] > 0.6  # bilinear borders of 3 x 3 patches cost the rest
    assert [tuple(one.shape) for one in found.predictions] == [(6, 9)] * 12
    shuffled = DenseExamples(train.patches_NLD.flip(0), train.targets)
    assert linear_segmentation(shuffled, test, classes, SEGMENTATION).scores["miou"] < 0.3


def test_a_class_that_is_ignored_is_never_predicted():
    """Class 0, if not ignored, would win everywhere."""
    rows, like = torch.tensor([[9.0, 1, 2], [9, 2, 1], [9, 1, 2], [9, 1, 2]]), torch.zeros(2, 2)
    assert classes_of(rows, like, Classes(3, 0)).tolist() == [[2, 1], [2, 2]]
    assert not classes_of(rows, like, Classes(3, 255)).any() and not classes_of(rows, like, Classes(3, None)).any()
    found = miou([classes_of(rows, like, Classes(3, 0))], [torch.tensor([[2, 1], [0, 2]])], Classes(3, 0))
    assert found == 1  # and class 0 is left out of the mean


def test_ignored_pixels_teach_nothing_and_do_not_count():
    """Labels of the lower half are wrong and ignored, so scores are those of the upper half."""
    train, test = _labelled(30, 0), _labelled(6, 1)

    def lower(examples: DenseExamples, label) -> DenseExamples:
        return DenseExamples(examples.patches_NLD, [torch.cat([one[:3], label(one[3:])]) for one in examples.targets])

    def masked(labels):
        return torch.full_like(labels, 7)

    found = linear_segmentation(lower(train, masked), lower(test, masked), Classes(3, 7), SEGMENTATION)
    upper = [one[:3] for one in test.targets]
    assert found.scores["miou"] == pytest.approx(miou([one[:3] for one in found.predictions], upper, Classes(3, None)))
    assert found.scores["miou"] > 0.5


def test_the_test_images_do_not_choose_the_learning_rate():
    train, test = _labelled(20, 0), _labelled(6, 1)
    rates = SEGMENTATION.model_copy(update={"probe": ProbeConfig(learning_rates=(1e-9, 5e-2), steps=40)})
    wrong = DenseExamples(test.patches_NLD, [(one + 1) % 3 for one in test.targets])
    found = [linear_segmentation(train, examples, Classes(3, None), rates) for examples in (test, wrong)]
    assert [one.scores["learning_rate"] for one in found] == [5e-2, 5e-2]
    assert found[0].scores["miou"] > found[1].scores["miou"]


def test_a_label_out_of_range_is_named_before_training():
    bad = DenseExamples(_noise(4, 9, 4), [torch.full((6, 9), 3)] * 4)
    with pytest.raises(ValueError, match=r"target holds class 3; it must lie in \[0, 2\] or be ignore_index \(255\)"):
        linear_segmentation(bad, bad, Classes(3, 255), SEGMENTATION)


def test_depth_is_the_mean_of_bins_by_hand():
    """Logits 0.9 and -5 weigh 1 and 0.1: (1 * 2 + 0.1 * 4) / 1.1 metres."""
    config = DepthConfig(data="toy", num_bins=2, min_depth_m=2, max_depth_m=4)
    depth = depth_of(torch.tensor([0.9, -5.0]).expand(1, 4, 2), (3, 5), config)
    torch.testing.assert_close(depth, torch.full((1, 3, 5), 2.4 / 1.1))


def test_depth_losses_by_hand():
    """A constant factor costs only the mean; a ramp of the log ratio only its slope over two pixels, per scale."""
    target = torch.ones(1, 12, 12)
    twice = 2 * (target + 0.001) - 0.001
    torch.testing.assert_close(sig_loss(twice, target), 0.15**0.5 * torch.tensor(2.0).log())
    assert gradient_loss(twice, target) == pytest.approx(0, abs=1e-5)
    ramp = (0.1 * torch.arange(12.0)).exp() * (target + 0.001) - 0.001
    pixels = {1: (0.2, 12 * 10, 144), 2: (0.4, 6 * 4, 36), 4: (0.8, 3 * 1, 9)}  # at stride 6 no pixels are two apart
    expected = sum(slope * pairs / count for slope, pairs, count in pixels.values())
    torch.testing.assert_close(gradient_loss(ramp, target), torch.tensor(expected), atol=1e-4, rtol=0)
    hole = target.clone()
    hole[:, 5] = 0
    torch.testing.assert_close(
        sig_loss(twice * (hole + 1), hole), 0.15**0.5 * torch.tensor(2 * 2.001).log(), atol=2e-3, rtol=0
    )


@pytest.mark.heavy
def test_the_depth_probe_finds_what_patches_know_and_leaves_out_what_is_too_far():
    def examples(images: int, seed: int) -> DenseExamples:
        patches, cls = _noise(images, 9, 3, seed=seed), _noise(images, 2, seed=seed + 1)
        depth = (1 + 0.3 * patches[..., 0] - 0.2 * patches[..., 2]).exp().clamp(max=9).view(images, 3, 3)
        targets = depth.repeat_interleave(3, 1).repeat_interleave(3, 2)
        targets[:, :2] = 50.0  # beyond max_depth_m
        targets[:, 2] = 0
        return DenseExamples(patches, list(targets), cls)

    probe = ProbeConfig(learning_rates=(5e-2, 2e-1), steps=80)
    config = DepthConfig(data="toy", probe=probe, train_size_px=9, num_bins=64)
    train, test = examples(40, 0), examples(8, 7)
    assert train.rows(torch.tensor([1, 0])).shape == (2, 9, 5)
    found = linear_depth(train, test, config)
    untaught = linear_depth(train._replace(patches_NLD=train.patches_NLD.flip(0)), test, config)
    assert found.scores["rmse_m"] < 0.75 * untaught.scores["rmse_m"]
    assert [tuple(one.shape) for one in found.predictions_m] == [(9, 9)] * 8


def test_a_wrong_depth_is_named():
    bad = DenseExamples(_noise(4, 9, 4), [torch.full((6, 9), -1.0)] * 4)
    with pytest.raises(ValueError, match="target_m must be finite and not negative"):
        linear_depth(bad, bad, DepthConfig(data="toy"))


def test_linear_classification_tells_clusters_apart():
    def clusters(images: int, seed: int) -> LabelledEmbeddings:
        labels = torch.arange(images) % 3
        return LabelledEmbeddings(
            3 * torch.eye(3)[labels] @ _noise(3, 8, seed=50) + _noise(images, 8, seed=seed), labels
        )

    probe = ProbeConfig(optimizer="sgd", learning_rates=(1e-6, 1e-1), steps=60, weight_decay=0)
    found = linear_accuracy(clusters(60, 0), clusters(30, 1), 3, ClassificationConfig(data="toy", probe=probe))
    assert found["accuracy"] > 0.95 and found["learning_rate"] == 1e-1
