"""Means over the valid images of the global batch. B images on this rank."""

import torch
from torch import Tensor

from tips_ray.distributed import sum_over_ranks, world_size


def image_weights(valid_B: Tensor, global_valid: Tensor | int | None, dtype: torch.dtype) -> Tensor:
    """Weight of each image, [B], such that the mean over ranks of weighted sums is the global mean.

    Args:
        valid_B: boolean; an invalid image weighs 0.
        global_valid: valid images of the global batch, over all ranks and micro-batches; counted over ranks when None.
        dtype: dtype of the losses.
    """
    if global_valid is None:
        global_valid = sum_over_ranks(valid_B.sum())
    count = torch.as_tensor(global_valid, device=valid_B.device).clamp(min=1)
    return valid_B.to(dtype) / count * world_size()


def all_valid(like_B: Tensor) -> Tensor:
    """A mask that counts every row of `like_B`."""
    return torch.ones(len(like_B), dtype=torch.bool, device=like_B.device)
