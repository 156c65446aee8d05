"""Cross-entropy between teacher and student prototype scores, of which only a few rows are held at a time.

R teacher rows on this rank, V student rows for each of them, C teacher rows of a chunk, D bottleneck width,
K prototypes.
"""

from collections.abc import Iterator
from math import ceil
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.precision import at_least_fp32

Scores = tuple[Tensor, Tensor]
"""Rows [..., D] and prototypes [K, D]; the scores [..., K] are their products."""
SCORES_AT_ONCE = {"cpu": 2**23}
"""(D) Most scores of a chunk by kind of device: few enough for memory, enough for efficient matrix products."""
_ON_OTHERS = 2**25


def prototype_loss(
    student: Scores,
    teacher: Scores,
    center_K: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    weight_R: Tensor,
) -> Tensor:
    """sum_r w_r mean_v H(softmax((t_r - c) / tau_t), softmax(s_vr / tau_s)), a scalar in nats.

    The weights are known, so the forward also computes the gradients: scores are computed once, a chunk of rows after
    the other, and neither they nor anything else of size [R, K] is kept.

    Args:
        student: rows [V, R, D] with their prototypes.
        teacher: rows [R, D] with their prototypes; no gradient flows into them.
        center_K: the centre before this step's update.
        student_temperature: divisor tau_s.
        teacher_temperature: divisor tau_t.
        weight_R: of each teacher row, without gradient; where it is 0, the loss may be anything.

    Raises:
        ValueError: numbers of rows or prototypes differ.
    """
    (student_VRD, student_KD), (teacher_RD, teacher_KD) = student, teacher
    if len(student_KD) != len(teacher_KD):
        raise ValueError(
            f"the student has {len(student_KD)} prototypes, the teacher {len(teacher_KD)}: both heads need the same "
            "number of prototypes"
        )
    if student_VRD.shape[1] != len(teacher_RD):
        raise ValueError(f"each of {len(teacher_RD)} teacher rows needs a student row, found {student_VRD.shape[1]}")
    constants = (teacher_RD.detach(), teacher_KD.detach(), center_K, student_temperature, teacher_temperature)
    return _PrototypeLoss.apply(student_VRD, student_KD, *constants, weight_R)


def teacher_probabilities(teacher: Scores, center_K: Tensor, temperature: Tensor) -> Tensor:
    """softmax((t - c) / tau_t), [..., K], in float32 or float64."""
    return _logits(*teacher, temperature, center_K).softmax(dim=-1)


def compile_losses(is_compiled: bool, backend: str = "inductor") -> None:
    """Set for this process whether what is done with a chunk of scores is compiled.

    It then passes over memory fewer times; numbers are equal to rounding.
    """
    global _chunk
    options = {"backend": backend, "dynamic": False, "fullgraph": True}
    _chunk = torch.compile(_plain_chunk, **options) if is_compiled else _plain_chunk


class _PrototypeLoss(torch.autograd.Function):
    """Keeps the gradients with respect to rows and prototypes, [V, R, D] and [K, D], from forward to backward."""

    @staticmethod
    def forward(
        ctx: Any,
        student_VRD: Tensor,
        student_KD: Tensor,
        teacher_RD: Tensor,
        teacher_KD: Tensor,
        center_K: Tensor,
        student_temperature: float,
        teacher_temperature: float,
        weight_R: Tensor,
    ) -> Tensor:
        crops, needs_gradient = len(student_VRD), any(ctx.needs_input_grad)
        temperatures = [weight_R.new_full((), value) for value in (student_temperature, teacher_temperature)]
        total = weight_R.new_zeros(())
        grads = torch.zeros_like(student_VRD), torch.zeros_like(student_KD, dtype=weight_R.dtype)
        for rows in _chunks(student_VRD, student_KD):
            rows_VCD, weight_C = student_VRD[:, rows], weight_R[rows] / crops
            loss_VC, slope_VCK = _chunk(rows_VCD, student_KD, teacher_RD[rows], teacher_KD, center_K, *temperatures)
            total += (loss_VC.masked_fill(weight_C == 0, 0) * weight_C).sum()
            if needs_gradient:
                _add_gradients(grads, rows, slope_VCK, rows_VCD, student_KD, weight_C / student_temperature)
        ctx.save_for_backward(*grads)
        return total

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        rows_VRD, prototypes_KD = (grad_outputs[0] * grad for grad in ctx.saved_tensors)
        return rows_VRD, prototypes_KD, None, None, None, None, None, None


def _plain_chunk(
    student_VCD: Tensor,
    student_KD: Tensor,
    teacher_CD: Tensor,
    teacher_KD: Tensor,
    center_K: Tensor,
    student_temperature: Tensor,
    teacher_temperature: Tensor,
) -> tuple[Tensor, Tensor]:
    """Loss of each row [V, C], and its gradient softmax(s / tau_s) - p with respect to s / tau_s, [V, C, K].

    The loss is logsumexp(s / tau_s) - p . s / tau_s, and the gradient has this form, because p sums to one.
    """
    probability_CK = teacher_probabilities((teacher_CD, teacher_KD), center_K, teacher_temperature)
    scaled_VCK = _logits(student_VCD, student_KD, student_temperature)
    softmax_VCK = scaled_VCK.softmax(dim=-1)
    # The largest score tells the logsumexp of its row without another exponential of all scores.
    total_VC = scaled_VCK.amax(dim=-1) - softmax_VCK.amax(dim=-1).log()
    loss_VC = total_VC - torch.linalg.vecdot(probability_CK, scaled_VCK)
    return loss_VC, softmax_VCK.sub_(probability_CK).to(student_VCD.dtype)


_chunk = _plain_chunk


def _logits(rows_CD: Tensor, prototypes_KD: Tensor, temperature: Tensor, center_K: Tensor | None = None) -> Tensor:
    """(s - c) / tau, [..., K], in float32 or float64."""
    if rows_CD.dtype == at_least_fp32(rows_CD).dtype:  # the product takes the divisor and the centre in
        return F.linear(rows_CD / temperature, prototypes_KD, None if center_K is None else -center_K / temperature)
    scores_CK = F.linear(rows_CD, prototypes_KD).float()
    return (scores_CK if center_K is None else scores_CK - center_K) / temperature


def _chunks(student_VRD: Tensor, prototypes_KD: Tensor) -> Iterator[slice]:
    """Teacher rows of each chunk, chunks of nearly equal size."""
    crops, rows, _ = student_VRD.shape
    scores = crops * rows * len(prototypes_KD)
    count = max(ceil(scores / SCORES_AT_ONCE.get(student_VRD.device.type, _ON_OTHERS)), 1)
    size = max(ceil(rows / count), 1)
    return (slice(start, start + size) for start in range(0, rows, size))


def _add_gradients(
    grads: tuple[Tensor, Tensor],
    rows: slice,
    slope_VCK: Tensor,
    rows_VCD: Tensor,
    prototypes_KD: Tensor,
    weight_C: Tensor,
) -> None:
    """Write the gradient of a chunk's rows, and add that of the prototypes."""
    grad_VRD, grad_KD = grads
    slope_PK, weight_C1 = slope_VCK.flatten(0, 1), weight_C[:, None]
    grad_VRD[:, rows] = (slope_PK @ prototypes_KD).view_as(rows_VCD) * weight_C1
    weighted_PD = (rows_VCD * weight_C1).to(slope_PK.dtype).flatten(0, 1)
    if grad_KD.dtype == slope_PK.dtype:
        torch.addmm(grad_KD, slope_PK.T, weighted_PD, out=grad_KD)
    else:
        grad_KD += slope_PK.T @ weighted_PD
