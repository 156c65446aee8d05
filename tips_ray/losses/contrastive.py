"""Image-text contrastive loss. B pairs on this rank, N pairs in the global batch, D width."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.distributed import gather_batch, rank
from tips_ray.losses.reduction import all_valid, image_weights
from tips_ray.precision import at_least_fp32

_IGNORED = -100


def contrastive_loss(
    image_BD: Tensor, text_BD: Tensor, logit_scale: Tensor | float, valid_B: Tensor | None = None
) -> Tensor:
    """Symmetric InfoNCE, with every other valid pair of the global batch as a negative.

    Args:
        image_BD: unit-norm image embeddings; B is the same on every rank.
        text_BD: unit-norm text embeddings; row i describes image i.
        logit_scale: inverse temperature, a multiplier and not its logarithm.
        valid_B: boolean; an invalid pair has no weight and is no negative. Default: all valid.

    Returns:
        Scalar in nats, float32 or better. Its mean over ranks is the mean over the valid pairs of the global batch, and
        so is its gradient once gradients are averaged over ranks: the gather carries gradient.

    Raises:
        ValueError: the two shapes differ.

    Source: CLIP, arXiv:2103.00020, Fig. 3.
    """
    if image_BD.shape != text_BD.shape:
        raise ValueError(f"image_BD {tuple(image_BD.shape)} and text_BD {tuple(text_BD.shape)} must have equal shape")
    valid_B = all_valid(image_BD) if valid_B is None else valid_B
    image_BD = at_least_fp32(image_BD).masked_fill(~valid_B[:, None], 0)
    text_BD = at_least_fp32(text_BD).masked_fill(~valid_B[:, None], 0)
    gathered_N = gather_batch(torch.cat([image_BD, text_BD, valid_B[:, None].to(image_BD.dtype)], dim=1))
    image_ND, text_ND, valid_N1 = gathered_N.split([image_BD.shape[1], text_BD.shape[1], 1], dim=1)
    valid_N = valid_N1.detach()[:, 0] > 0
    target_B = torch.where(valid_B, rank() * len(valid_B) + torch.arange(len(valid_B), device=valid_B.device), _IGNORED)
    loss_B = _nats(logit_scale * image_BD @ text_ND.T, valid_N, target_B)
    loss_B = (loss_B + _nats(logit_scale * text_BD @ image_ND.T, valid_N, target_B)) / 2
    return (loss_B * image_weights(valid_B, valid_N.sum(), loss_B.dtype)).sum()


def _nats(logits_BN: Tensor, valid_N: Tensor, target_B: Tensor) -> Tensor:
    # A large finite number instead of -inf: a batch without any valid pair then gives 0 and not NaN.
    logits_BN = logits_BN.masked_fill(~valid_N, torch.finfo(logits_BN.dtype).min)
    return F.cross_entropy(logits_BN, target_B, reduction="none", ignore_index=_IGNORED)
