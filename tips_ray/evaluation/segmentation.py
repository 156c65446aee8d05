"""Semantic segmentation by linear probes on frozen patches. N images, L patches, D width, C classes, R learning rates.

H W are those of a label map, which may differ from image to image: images are squashed to a square, labels are not.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import SegmentationConfig
from tips_ray.evaluation.metrics import confusion_matrix, mean_iou_of
from tips_ray.evaluation.probe import LinearProbes, split_places, trained_probes


class Segmentation(NamedTuple):
    """What the chosen probe reaches on the test images."""

    scores: dict[str, float]
    """`miou` and the chosen `learning_rate`."""
    predictions: list[Tensor]
    """Classes, [H, W] each."""


def linear_segmentation(
    train_NLD: Tensor,
    train_labels: Sequence[Tensor],
    test_NLD: Tensor,
    test_labels: Sequence[Tensor],
    num_classes: int,
    ignore_index: int | None,
    config: SegmentationConfig,
    seed: int = 0,
) -> Segmentation:
    """BatchNorm and a linear map; mIoU at the labels' own size, of the learning rate that is best on held-out images.

    Args:
        train_NLD: patches on a square grid.
        train_labels: integer [H, W] each.
        test_NLD: as `train_NLD`.
        test_labels: as `train_labels`.
        num_classes: C.
        ignore_index: label of pixels that do not count.
        config: of the probes.
        seed: of their start and batches.

    Raises:
        ValueError: a label is out of range, or no pixel counts.
    """
    target_NHW = _labels_of_size(train_labels, config.train_size_px)
    ignored = -100 if ignore_index is None else ignore_index  # -100: cross_entropy's own, which no label is

    def loss(logits_RbLC: Tensor, batch_b: Tensor) -> Tensor:
        logits = upsampled(logits_RbLC.flatten(0, 1), target_NHW.shape[-2:]).unflatten(0, logits_RbLC.shape[:2])
        return torch.stack([F.cross_entropy(one, target_NHW[batch_b], ignore_index=ignored) for one in logits])

    _check(train_labels, num_classes, ignore_index)
    learned_n, held_out_m = split_places(len(train_NLD), config.probe)
    probes = trained_probes(train_NLD, learned_n, num_classes, loss, config.probe, seed)
    held_out = [train_labels[place] for place in held_out_m.tolist()]
    chosen = max(
        range(len(config.probe.learning_rates)),
        key=lambda probe: _miou(predicted(probes, probe, train_NLD[held_out_m], held_out), held_out, ignore_index),
    )
    predictions = predicted(probes, chosen, test_NLD, test_labels)
    scores = {"miou": _miou(predictions, test_labels, ignore_index), "learning_rate": config.probe.learning_rates[chosen]}
    return Segmentation(scores, predictions)
