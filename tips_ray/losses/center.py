"""Centre of teacher scores; centring keeps one prototype from dominating. R rows on this rank,
D bottleneck width, K prototypes."""

import torch
from torch import Tensor

from tips_ray.losses.prototypes import Scores
from tips_ray.precision import at_least_fp32


def score_sum(teacher: Scores, counted_R: Tensor) -> Tensor:
    """Sum of the counted rows of raw teacher scores, with their number as the last entry, [K + 1].

    The vectors of micro-batches and ranks are added up, so that the centre is a mean over all rows of the global batch.
    Scores are products of rows [R, D] and prototypes [K, D], so that only the rows have to be added up.
    """
    rows_RD, prototypes_KD = (at_least_fp32(factor.detach()) for factor in teacher)
    sum_D = rows_RD.masked_fill(~counted_R[:, None], 0).sum(dim=0)
    return torch.cat([prototypes_KD @ sum_D, counted_R.sum()[None].to(sum_D.dtype)])


def moved_center(center_K: Tensor, global_sum_K1: Tensor, momentum: float) -> Tensor:
    """New centre mu c + (1 - mu) mean(t), [K]; the old centre if no row was counted.

    Args:
        center_K: the centre used in this step.
        global_sum_K1: `score_sum` over all micro-batches and ranks.
        momentum: mu, the share of the old centre that stays.

    Source: DINO, arXiv:2104.14294, equation 4; TIPS centres without Sinkhorn-Knopp.
    """
    total_K, count = global_sum_K1[:-1], global_sum_K1[-1]
    moved_K = momentum * center_K + (1 - momentum) * total_K / count.clamp(min=1)
    return torch.where(count > 0, moved_K, center_K).to(center_K.dtype)
