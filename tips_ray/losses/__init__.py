"""Losses: tensors in, scalar out; no config, no model, no weight.

Every loss is written so that the mean over ranks of its values is the loss of the global batch, and so is the mean over
ranks of its gradients (FSDP averages gradients). With K micro-batches the values, and the gradients, add up.
"""

from tips_ray.losses.center import moved_center, score_sum
from tips_ray.losses.contrastive import contrastive_loss
from tips_ray.losses.distillation import distillation_loss
from tips_ray.losses.masked_image import masked_image_loss, patch_shares
from tips_ray.losses.prototypes import compile_losses

__all__ = [
    "compile_losses",
    "contrastive_loss",
    "distillation_loss",
    "masked_image_loss",
    "moved_center",
    "patch_shares",
    "score_sum",
]
