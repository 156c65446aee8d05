"""Masked patch prediction. B images on this rank, L patches, M patches that are scored,
D bottleneck width, K prototypes."""

from torch import Tensor

from tips_ray.losses.prototypes import Scores, prototype_loss
from tips_ray.losses.reduction import all_valid, image_weights
from tips_ray.precision import at_least_fp32


def masked_image_loss(
    student: Scores,
    teacher: Scores,
    index_M: Tensor,
    patch_mask_BL: Tensor,
    center_K: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    valid_B: Tensor | None = None,
    global_valid: Tensor | int | None = None,
    visible_weight: float = 0.0,
) -> Tensor:
    """Cross-entropy between the teacher's patches of the unmasked view and the student's of the masked one.

    Args:
        student: rows [M, D] of the patches named by `index_M` and prototypes [K, D], whose products are the scores.
        teacher: the same of the teacher; no gradient flows into them.
        index_M: positions in [B * L]; all masked patches, and with `visible_weight` all patches.
        patch_mask_BL: boolean, True = masked; counts may differ between images and ranks.
        center_K: the centre before this step's update.
        student_temperature: divisor tau_s.
        teacher_temperature: divisor tau_t.
        valid_B: boolean; an invalid image has no weight. Default: all valid.
        global_valid: valid images over all ranks and micro-batches; counted over ranks when None.
        visible_weight: iBOT++ (TIPSv2): weight of the mean over visible patches, added to that over masked ones.

    Returns:
        Scalar in nats: mean over the masked patches of an image, then over valid images (our normalisation); an image
        without masked patches counts as 0 and stays in the mean. Its mean over ranks is the loss of the global batch.

    Raises:
        ValueError: numbers of patches or prototypes differ.

    Source: TIPS, arXiv:2410.16512, section 3; iBOT, arXiv:2111.07832; iBOT++, TIPSv2, arXiv:2604.12012.
    """
    rows_MD, prototypes_KD = student
    if len(index_M) != len(rows_MD):
        raise ValueError(f"index_M names {len(index_M)} patches, the student has rows of {len(rows_MD)}")
    valid_B = all_valid(patch_mask_BL) if valid_B is None else valid_B
    weight_B1 = image_weights(valid_B, global_valid, at_least_fp32(rows_MD).dtype)[:, None]
    weight_BL = weight_B1 * (_shares(patch_mask_BL, weight_B1) + visible_weight * _shares(~patch_mask_BL, weight_B1))
    weight_M = weight_BL.flatten()[index_M]
    one_each = rows_MD[None], prototypes_KD
    return prototype_loss(one_each, teacher, center_K, student_temperature, teacher_temperature, weight_M)


def _shares(chosen_BL: Tensor, like: Tensor) -> Tensor:
    """1/n at the n chosen patches of an image, 0 elsewhere."""
    return chosen_BL.to(like.dtype) / chosen_BL.sum(dim=1, keepdim=True).clamp(min=1)
