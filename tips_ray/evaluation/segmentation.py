"""Semantic segmentation by linear probes on frozen patches. L patches, C classes, R learning rates, b batch images."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import SegmentationConfig
from tips_ray.evaluation.dense import DenseExamples, squashed, upsampled
from tips_ray.evaluation.metrics import confusion_matrix, mean_iou_of
from tips_ray.evaluation.probe import LEARNING_RATE, LinearProbes, split_places, trained_probes

_NO_CLASS = -100


class Classes(NamedTuple):
    """Number of classes, and the label that does not count."""

    num_classes: int
    ignore_index: int | None
    """Label of pixels that do not count."""


class Segmentation(NamedTuple):
    """Scores and predictions on the test images."""

    scores: dict[str, float]
    predictions: list[Tensor]
    """Class maps, each as large as its label map."""


def linear_segmentation(
    train: DenseExamples, test: DenseExamples, classes: Classes, config: SegmentationConfig, seed: int = 0
) -> Segmentation:
    """`miou` of BatchNorm and a linear map, at the learning rate that is best on held-out training images.

    Raises:
        ValueError: a label is out of range, no pixel counts, or there are too few images to hold one out.
    """
    for examples in (train, test):
        miou((torch.zeros_like(labels) for labels in examples.targets), examples.targets, classes)  # checks the labels
    learned_n, held_out_m = split_places(len(train.patches_NLD), config.probe)
    loss = _loss(train, classes, config.train_size_px)
    probes = trained_probes(train.rows, learned_n, classes.num_classes, loss, config.probe, seed)
    held_out_labels = [train.targets[place] for place in held_out_m.tolist()]
    held_out_R = [
        miou(_predicted(probes, probe, train, held_out_m, classes), held_out_labels, classes)
        for probe in range(len(config.probe.learning_rates))
    ]
    chosen = held_out_R.index(max(held_out_R))
    predictions = list(_predicted(probes, chosen, test, torch.arange(len(test.targets)), classes))
    rate = config.probe.learning_rates[chosen]
    return Segmentation({"miou": miou(predictions, test.targets, classes), LEARNING_RATE: rate}, predictions)


def miou(predictions: Iterable[Tensor], labels: Iterable[Tensor], classes: Classes) -> float:
    """Mean IoU over all images together; their sizes may differ."""
    pairs = zip(predictions, labels, strict=True)
    return mean_iou_of(sum((confusion_matrix(*pair, *classes) for pair in pairs), torch.zeros((), dtype=torch.long)))


def classes_of(rows_LC: Tensor, like: Tensor, classes: Classes) -> Tensor:
    """Class with the largest value at each pixel of a map as large as `like`, except the ignored one; int32."""
    values_CHW = upsampled(rows_LC[None], like.shape)[0]
    if classes.ignore_index in range(classes.num_classes):
        values_CHW[classes.ignore_index] = -torch.inf
    return values_CHW.argmax(dim=0).int()


def _loss(train: DenseExamples, classes: Classes, size_px: int):
    """Loss for `trained_probes`: mean cross-entropy over the labelled pixels of a batch's squashed labels."""
    labels_NHW = squashed(train.targets, size_px)

    def loss(logits_RbLC: Tensor, batch_b: Tensor) -> Tensor:
        labels_bHW = labels_NHW[batch_b].long()
        if classes.ignore_index is not None:
            labels_bHW = labels_bHW.masked_fill(labels_bHW == classes.ignore_index, _NO_CLASS)
        pixels = (labels_bHW != _NO_CLASS).sum().clamp(min=1)
        parts = [upsampled(logits_bLC, labels_bHW.shape[-2:]) for logits_bLC in logits_RbLC]
        sums = [F.cross_entropy(part, labels_bHW, ignore_index=_NO_CLASS, reduction="sum") for part in parts]
        return torch.stack(sums) / pixels

    return loss


def _predicted(
    probes: LinearProbes, probe: int, examples: DenseExamples, places_n: Tensor, classes: Classes
) -> Iterator[Tensor]:
    """Predictions, made one image at a time, which bounds memory."""
    for place in places_n.tolist():
        yield classes_of(probes(examples.rows(torch.tensor([place])))[probe, 0], examples.targets[place], classes)
