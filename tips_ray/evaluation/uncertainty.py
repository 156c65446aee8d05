"""Standard errors of scores over the test images: how much scores would vary with other images of the same kind.

N images, C classes, S samples. Chance in training is not included. The difference between two models on the same images
varies less than the sum of both errors suggests.
"""

from collections.abc import Iterable, Sequence
from math import sqrt

import torch
from torch import Tensor

from tips_ray.evaluation.metrics import class_iou, confusion_matrix, depth_rmse

SAMPLES = 200
"""Bootstrap samples; 200 give the standard error to about a twentieth of its value."""


def share_error(share: float, queries: int) -> float:
    """Binomial standard error of a share of right answers."""
    return sqrt(share * (1 - share) / queries)


def miou_error(
    predictions: Iterable[Tensor], labels: Iterable[Tensor], num_classes: int, ignore_index: int | None
) -> float:
    """Standard error of the mean IoU over all images, by bootstrap: `SAMPLES` draws of images with replacement."""
    pairs = zip(predictions, labels, strict=True)
    counts_NCC = torch.stack([confusion_matrix(*pair, num_classes, ignore_index) for pair in pairs]).double()
    images = len(counts_NCC)
    drawn_SN = torch.randint(images, (SAMPLES, images), generator=torch.Generator().manual_seed(0))
    often_SN = torch.nn.functional.one_hot(drawn_SN, images).sum(dim=1).double()
    counts_SCC = torch.einsum("sn,ncd->scd", often_SN, counts_NCC)
    return torch.stack([class_iou(counts_CC).nanmean() for counts_CC in counts_SCC]).std().item()


def rmse_error(predictions_m: Sequence[Tensor], targets_m: Sequence[Tensor], max_depth_m: float) -> float:
    """Standard error of the mean over images of their depth RMSE; targets beyond `max_depth_m` do not count."""
    kept = [target_m.float().masked_fill(target_m > max_depth_m, 0) for target_m in targets_m]
    pairs = zip(predictions_m, kept, strict=True)
    return mean_error([depth_rmse(one[None], target_m[None]) for one, target_m in pairs])


def mean_error(values: Sequence[float]) -> float:
    """Standard error of the mean; 0 for a single value."""
    values_N = torch.tensor(values, dtype=torch.float64)
    return (values_N.std() / sqrt(len(values_N))).item() if len(values_N) > 1 else 0.0
