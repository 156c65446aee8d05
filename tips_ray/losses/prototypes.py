"""Cross-entropy between teacher and student prototype scores. R rows, K prototypes."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.losses.reduction import at_least_float32


def teacher_probabilities(teacher_RK: Tensor, center_K: Tensor, teacher_temperature: Tensor | float) -> Tensor:
    """softmax((t - c) / tau_t), [R, K], without gradient."""
    with torch.no_grad():
        return F.softmax((at_least_float32(teacher_RK) - center_K) / teacher_temperature, dim=-1)


def cross_entropy(student_RK: Tensor, probability_RK: Tensor, student_temperature: float) -> Tensor:
    """-sum_k p_k log softmax(s / tau_s)_k, [R], in nats.

    Written as logsumexp(s / tau_s) - p . s / tau_s, which holds because p sums to one and keeps one [R, K] less.

    Raises:
        ValueError: the two shapes differ.
    """
    if student_RK.shape != probability_RK.shape:
        raise ValueError(
            f"student scores {tuple(student_RK.shape)} and teacher scores {tuple(probability_RK.shape)} must have "
            "equal shape: both heads need the same number of prototypes"
        )
    scaled_RK = at_least_float32(student_RK) / student_temperature
    return scaled_RK.logsumexp(dim=-1) - torch.linalg.vecdot(probability_RK.to(scaled_RK.dtype), scaled_RK)
