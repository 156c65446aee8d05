"""Teacher-student distillation on the CLS token. B images on this rank, V local crops, K prototypes."""

import torch
from torch import Tensor

from tips_ray.losses.prototypes import cross_entropy, teacher_probabilities
from tips_ray.losses.reduction import all_valid, image_weights


def distillation_loss(
    student_VBK: Tensor,
    teacher_BK: Tensor,
    center_K: Tensor,
    student_temperature: float,
    teacher_temperature: Tensor | float,
    valid_B: Tensor | None = None,
    global_valid: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy between the teacher's full view and each local crop of the student.

    Args:
        student_VBK: student scores of V local crops.
        teacher_BK: teacher scores of the global crop; no gradient flows into them.
        center_K: the centre before this step's update.
        student_temperature: divisor tau_s.
        teacher_temperature: divisor tau_t.
        valid_B: boolean; an invalid image has no weight. Default: all valid.
        global_valid: valid images over all ranks and micro-batches; counted over ranks when None.

    Returns:
        Scalar in nats: mean over crops (our normalisation; the paper's formula sums them) and valid images. Its mean
        over ranks is the loss of the global batch.

    Raises:
        ValueError: numbers of images or prototypes differ.

    Source: TIPS, arXiv:2410.16512, section 3; DINO, arXiv:2104.14294.
    """
    valid_B = all_valid(teacher_BK) if valid_B is None else valid_B
    probability_BK = teacher_probabilities(teacher_BK, center_K, teacher_temperature)
    loss_VB = torch.stack(
        [cross_entropy(student_BK, probability_BK, student_temperature) for student_BK in student_VBK]
    )
    weight_B = image_weights(valid_B, global_valid, loss_VB.dtype)
    return (loss_VB.mean(dim=0).masked_fill(~valid_B, 0) * weight_B).sum()
