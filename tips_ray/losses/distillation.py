"""Teacher-student distillation on the CLS token. B images on this rank, V local crops, D bottleneck width,
K prototypes."""

from torch import Tensor

from tips_ray.losses.prototypes import Scores, prototype_loss
from tips_ray.losses.reduction import all_valid, image_weights
from tips_ray.precision import at_least_fp32


def distillation_loss(
    student: Scores,
    teacher: Scores,
    center_K: Tensor,
    student_temperature: float,
    teacher_temperature: float,
    valid_B: Tensor | None = None,
    global_valid: Tensor | int | None = None,
) -> Tensor:
    """Cross-entropy between the teacher's full view and each local crop of the student.

    Args:
        student: rows [V, B, D] of V local crops and prototypes [K, D], whose products are the scores.
        teacher: rows [B, D] of the global crop and prototypes; no gradient flows into them.
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
    valid_B = all_valid(teacher[0]) if valid_B is None else valid_B
    weight_B = image_weights(valid_B, global_valid, at_least_fp32(student[0]).dtype)
    return prototype_loss(student, teacher, center_K, student_temperature, teacher_temperature, weight_B)
