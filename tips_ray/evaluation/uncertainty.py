"""Standard errors of scores over the test images: how far other images of the same kind would have moved them.

N images, C classes, S samples. They know nothing of chance in training. Differences between models on the same images
vary less than two errors added up would say.
"""

from collections.abc import Iterable, Sequence
from math import sqrt

import torch
from torch import Tensor

from tips_ray.evaluation.metrics import class_iou, confusion_matrix, depth_rmse

SAMPLES = 200
"""Of the bootstrap: its error is then known to a twentieth."""


def share_error(share: float, queries: int) -> float:
    """Of a share of right answers, binomial."""
    return sqrt(share * (1 - share) / queries)


def miou_error(
    predictions: Iterable[Tensor], labels: Iterable[Tensor], num_classes: int, ignore_index: int | None
) -> float:
    """Of the mean IoU over all images together, by the bootstrap: images drawn with replacement, `SAMPLES` times."""
    pairs = zip(predictions, labels, strict=True)
    counts_NCC = torch.stack([confusion_matrix(*pair, num_classes, ignore_index) for pair in pairs]).double()
    images = len(counts_NCC)
    drawn_SN = torch.randint(images, (SAMPLES, images), generator=torch.Generator().manual_seed(0))
    often_SN = torch.nn.functional.one_hot(drawn_SN, images).sum(dim=1).double()
    counts_SCC = torch.einsum("sn,ncd->scd", often_SN, counts_NCC)
    return torch.stack([class_iou(counts_CC).nanmean() for counts_CC in counts_SCC]).std().item()


def rmse_error(predictions_m: Sequence[Tensor], targets_m: Sequence[Tensor], max_depth_m: float) -> float:
    """Of the mean over images of their depth RMSE; targets beyond `max_depth_m` do not count."""
    kept = [target_m.float().masked_fill(target_m > max_depth_m, 0) for target_m in targets_m]
    pairs = zip(predictions_m, kept, strict=True)
    return mean_error([depth_rmse(one[None], target_m[None]) for one, target_m in pairs])


def mean_error(values: Sequence[float]) -> float:
    """Of their mean. One value has none: 0."""
    values_N = torch.tensor(values, dtype=torch.float64)
    return (values_N.std() / sqrt(len(values_N))).item() if len(values_N) > 1 else 0.0
