"""Semantic segmentation by linear probes on frozen patches. L patches, C classes, R learning rates, b of the images."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import SegmentationConfig
from tips_ray.evaluation.dense import DenseExamples, squashed, upsampled
from tips_ray.evaluation.metrics import confusion_matrix, mean_iou_of
from tips_ray.evaluation.probe import LinearProbes, split_places, trained_probes

_NO_CLASS = -100


class Classes(NamedTuple):
    """What labels mean."""

    num_classes: int
    ignore_index: int | None
    """Label of pixels that do not count."""


class Segmentation(NamedTuple):
    """What a task reaches on the test images."""

    scores: dict[str, float]
    predictions: list[Tensor]
    """Classes, as large as the labels."""


def linear_segmentation(
    train: DenseExamples, test: DenseExamples, classes: Classes, config: SegmentationConfig, seed: int = 0
) -> Segmentation:
    """BatchNorm and a linear map; `miou` of the learning rate that is best on held-out training images.

    Raises:
        ValueError: a label is out of range, no pixel counts, or there are too few images to hold one out.
    """
    for examples in (train, test):
        pixels = torch.cat([labels.flatten() for labels in examples.targets])
        confusion_matrix(torch.zeros_like(pixels), pixels, *classes)  # judges the labels, before any training
    learned_n, held_out_m = split_places(len(train.patches_NLD), config.probe)
    loss = _loss(train, classes, config.train_size_px)
    probes = trained_probes(train.patches_NLD, learned_n, classes.num_classes, loss, config.probe, seed)
    held_out = train.at(held_out_m)
    held_out_R = [
        miou(_predicted(probes, probe, held_out), held_out.targets, classes)
        for probe in range(len(config.probe.learning_rates))
    ]
    chosen = held_out_R.index(max(held_out_R))
    predictions = _predicted(probes, chosen, test)
    rate = config.probe.learning_rates[chosen]
    return Segmentation({"miou": miou(predictions, test.targets, classes), "learning_rate": rate}, predictions)


def miou(predictions: Iterable[Tensor], labels: Iterable[Tensor], classes: Classes) -> float:
    """Over all images together, which may be of different sizes."""
    pairs = zip(predictions, labels, strict=True)
    return mean_iou_of(torch.stack([confusion_matrix(*pair, *classes) for pair in pairs]).sum(dim=0))


def classes_of(rows_NLC: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The class with the largest value at each pixel of maps as large as `like`."""
    pairs = zip(rows_NLC, like, strict=True)
    return [upsampled(rows_LC[None], labels.shape).argmax(dim=1)[0] for rows_LC, labels in pairs]


def _loss(train: DenseExamples, classes: Classes, size_px: int):
    """Cross-entropy per pixel of the squashed labels; a batch that has none of a class counts like any other."""
    labels_NHW = squashed(train.targets, size_px).long()
    if classes.ignore_index is not None:
        labels_NHW = labels_NHW.masked_fill(labels_NHW == classes.ignore_index, _NO_CLASS)

    def loss(logits_RbLC: Tensor, batch_b: Tensor) -> Tensor:
        labels_bHW = labels_NHW[batch_b]
        pixels = (labels_bHW != _NO_CLASS).sum().clamp(min=1)
        parts = [upsampled(logits_bLC, labels_bHW.shape[-2:]) for logits_bLC in logits_RbLC]
        sums = [F.cross_entropy(part, labels_bHW, ignore_index=_NO_CLASS, reduction="sum") for part in parts]
        return torch.stack(sums) / pixels

    return loss


def _predicted(probes: LinearProbes, probe: int, examples: DenseExamples) -> list[Tensor]:
    """Image by image, which bounds memory."""
    found = []
    for place, labels in enumerate(examples.targets):
        logits_RbLC = probes(examples.patches_NLD[place : place + 1])
        found += classes_of(logits_RbLC[probe], [labels])
    return found
