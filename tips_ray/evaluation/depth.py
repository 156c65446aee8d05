"""Monocular depth by a closed-form probe on frozen patches. N images, L patches, D width, H W pixels.

It is a ridge regression instead of the published bins (`depth_bins.py`): no learning rate, the same result on every
run, seconds on a CPU. The demo uses it.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.evaluation.dense import squashed, upsampled
from tips_ray.evaluation.metrics import depth_rmse

RIDGE = 1e-3  # on standardised features, per row


def linear_depth_probe(train_NLD: Tensor, train_depth_NHW: Tensor, test_NLD: Tensor) -> Tensor:
    """Depth of the test images in metres, [N, H, W], at the size of the training targets.

    The probe predicts the logarithm of the depth at the patch's centre. It learns from patches whose centre has a
    target above 0.

    Args:
        train_NLD: [patch, CLS] of a square grid.
        train_depth_NHW: metres, 0 where there is no target.
        test_NLD: like `train_NLD`.
    """
    target_NL = squashed(list(train_depth_NHW), round(train_NLD.shape[1] ** 0.5)).flatten(1)
    known = (target_NL > 0).flatten()
    log_target = target_NL.flatten()[known].double().log()
    log_depth = ridge_predictions(train_NLD.flatten(0, 1)[known], log_target, test_NLD.flatten(0, 1))
    maps_NLC = log_depth.view(*test_NLD.shape[:2], 1).float()
    return upsampled(maps_NLC, train_depth_NHW.shape[1:])[:, 0].exp()


def linear_depth_rmse(train_NLD: Tensor, train_depth_NHW: Tensor, test_NLD: Tensor, test_depth_NHW: Tensor) -> float:
    """RMSE in metres of the probe on the test images."""
    return depth_rmse(linear_depth_probe(train_NLD, train_depth_NHW, test_NLD), test_depth_NHW)


def ridge_predictions(train_RD: Tensor, targets: Tensor, test_QD: Tensor) -> Tensor:
    """Predictions for the test rows of a ridge regression on standardised features, fp64; [Q] or [Q, C].

    Args:
        train_RD: features of R rows.
        targets: [R] or [R, C].
        test_QD: features of Q rows.
    """
    inputs, mean, scale = _standardised(train_RD.double())
    weights = _ridge(inputs, targets.double(), RIDGE * len(inputs))
    return _with_bias((test_QD.double() - mean) / scale) @ weights


def _standardised(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, scale = rows.mean(dim=0), rows.std(dim=0).clamp(min=1e-6)
    return _with_bias((rows - mean) / scale), mean, scale


def _with_bias(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 1), value=1.0)


def _ridge(inputs: Tensor, targets: Tensor, penalty: float) -> Tensor:
    gram = inputs.T @ inputs
    gram.diagonal()[:-1] += penalty  # the bias is not penalised
    return torch.linalg.solve(gram, inputs.T @ targets)
