"""Masked patch prediction. B images on this rank, L patches, M patches that are scored, K prototypes."""

from torch import Tensor

from tips_ray.losses.prototypes import cross_entropy, teacher_probabilities
from tips_ray.losses.reduction import all_valid, image_weights


def masked_image_loss(
    student_MK: Tensor,
    teacher_MK: Tensor,
    index_M: Tensor,
    patch_mask_BL: Tensor,
    center_K: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor | float,
    valid_B: Tensor | None = None,
    global_valid: Tensor | int | None = None,
    visible_weight: float = 0.0,
) -> Tensor:
    """Cross-entropy between the teacher's patches of the unmasked view and the student's of the masked one.

    Args:
        student_MK: student scores of the patches named by `index_M`.
        teacher_MK: teacher scores of the same patches; no gradient flows into them.
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
    if len(index_M) != len(student_MK):
        raise ValueError(f"index_M names {len(index_M)} patches, student_MK scores {len(student_MK)}")
    valid_B = all_valid(patch_mask_BL) if valid_B is None else valid_B
    probability_MK = teacher_probabilities(teacher_MK, center_K, teacher_temperature)
    loss_M = cross_entropy(student_MK, probability_MK, student_temperature)
    weight_B1 = image_weights(valid_B, global_valid, loss_M.dtype)[:, None]
    weight_BL = weight_B1 * (_shares(patch_mask_BL, weight_B1) + visible_weight * _shares(~patch_mask_BL, weight_B1))
    weight_M = weight_BL.flatten()[index_M]
    return (loss_M.masked_fill(weight_M == 0, 0) * weight_M).sum()


def _shares(chosen_BL: Tensor, like: Tensor) -> Tensor:
    """1/n at the n chosen patches of an image, 0 elsewhere."""
    return chosen_BL.to(like.dtype) / chosen_BL.sum(dim=1, keepdim=True).clamp(min=1)
