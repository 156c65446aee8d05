"""Monocular depth by a linear probe on frozen patches. N images, L patches, D width, H W pixels.

A closed-form ridge regression instead of the paper's 256 bins trained by gradient descent: no learning rate, the same
result on every run, seconds on a CPU. The published protocol belongs to the full evaluation.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.evaluation.metrics import depth_rmse
from tips_ray.models import ImageFeatures

RIDGE = 1e-3  # on standardised features, per row


def linear_depth_probe(
    train: ImageFeatures, train_depth_NHW: Tensor, test: ImageFeatures, grid: tuple[int, int]
) -> Tensor:
    """Depth of the test images in metres, [N, H, W], at the size of the training targets.

    The probe sees [patch, CLS-web] and predicts the logarithm of the depth at the patch's centre; it is learned from
    patches whose centre has a target above 0.
    """
    target_NL = F.interpolate(train_depth_NHW[:, None], grid, mode="nearest-exact").flatten(1)
    known = (target_NL > 0).flatten()
    inputs, mean, scale = _standardised(_rows(train)[known])
    weights = _ridge(inputs, target_NL.flatten()[known].double().log(), RIDGE * len(inputs))
    log_depth = _with_bias((_rows(test) - mean) / scale) @ weights
    maps = log_depth.view(-1, 1, *grid).float()
    size = (train_depth_NHW.shape[1], train_depth_NHW.shape[2])
    return F.interpolate(maps, size, mode="bilinear", align_corners=False)[:, 0].exp()


def linear_depth_rmse(
    train: ImageFeatures,
    train_depth_NHW: Tensor,
    test: ImageFeatures,
    test_depth_NHW: Tensor,
    grid: tuple[int, int],
) -> float:
    """RMSE in metres of the probe on the test images."""
    return depth_rmse(linear_depth_probe(train, train_depth_NHW, test, grid), test_depth_NHW)


def _rows(features: ImageFeatures) -> Tensor:
    """[patch, CLS-web] of every patch, float64 [N * L, 2 D]."""
    cls_NLD = features.cls_web_BD[:, None].expand_as(features.patches_BLD)
    return torch.cat([features.patches_BLD, cls_NLD], dim=-1).flatten(0, 1).double()


def _standardised(rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    mean, scale = rows.mean(dim=0), rows.std(dim=0).clamp(min=1e-6)
    return _with_bias((rows - mean) / scale), mean, scale


def _with_bias(rows: Tensor) -> Tensor:
    return F.pad(rows, (0, 1), value=1.0)


def _ridge(inputs: Tensor, targets: Tensor, penalty: float) -> Tensor:
    gram = inputs.T @ inputs
    gram.diagonal()[:-1] += penalty  # the bias is free
    return torch.linalg.solve(gram, inputs.T @ targets)
