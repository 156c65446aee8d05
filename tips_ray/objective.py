"""Named losses from outputs of student and teacher, and their weighted total. B images on this rank, K prototypes."""

from collections.abc import Mapping
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from tips_ray.batch import Batch
from tips_ray.config import ObjectiveConfig
from tips_ray.losses import (
    compile_losses,
    contrastive_loss,
    distillation_loss,
    masked_image_loss,
    moved_center,
    patch_shares,
    score_sum,
)
from tips_ray.models.networks import Embeddings, StudentOutputs, TeacherScores, scored_patches

__all__ = [
    "Centers",
    "Temperatures",
    "center_sums",
    "compile_losses",
    "contrastive_terms",
    "patch_weights",
    "self_supervised_terms",
    "weighted_total",
]


class Temperatures(NamedTuple):
    """Divisors of the prototype scores in one loss."""

    student: float
    teacher: float


class Centers(nn.Module):
    """Centres of both heads, frozen within an optimizer step and moved once per step."""

    distillation_K: Tensor
    masked_image_K: Tensor

    def __init__(self, num_prototypes: int) -> None:
        super().__init__()
        self.register_buffer("distillation_K", torch.zeros(num_prototypes))
        self.register_buffer("masked_image_K", torch.zeros(num_prototypes))

    def move(self, global_sums: Mapping[str, Tensor], momentum: float, halted: Tensor | None = None) -> Self:
        """Update in place from `center_sums` summed over micro-batches and ranks, unless the scalar `halted` is 1."""
        for name, sum_K1 in global_sums.items():
            center_K = getattr(self, f"{name}_K")
            moved_K = moved_center(center_K, sum_K1, momentum)
            center_K.copy_(moved_K if halted is None else torch.where(halted > 0, center_K, moved_K))
        return self


def contrastive_terms(
    embeddings: Embeddings, log_temperature: Tensor, valid_B: Tensor, config: ObjectiveConfig
) -> dict[str, Tensor]:
    """L_CLIP and L^_CLIP, each only if its weight is not 0.

    Each CLS token is compared with its caption; both use one temperature.
    """
    logit_scale = (-log_temperature).exp()
    cls_web_BD, cls_synthetic_BD, web_BD, synthetic_BD = embeddings
    pairs = {"contrastive_web": (cls_web_BD, web_BD), "contrastive_synthetic": (cls_synthetic_BD, synthetic_BD)}
    weights = _weights(config)
    return {name: contrastive_loss(*pair, logit_scale, valid_B) for name, pair in pairs.items() if weights[name]}


def self_supervised_terms(
    student: StudentOutputs,
    teacher: TeacherScores,
    centers: Centers,
    batch: Batch,
    config: ObjectiveConfig,
    temperatures: Mapping[str, Temperatures],
    global_valid: Tensor,
) -> dict[str, Tensor]:
    """L_distill and L_mask of one micro-batch, each only if its weight is not 0; micro-batches add up.

    `temperatures` has those of this step by the name of the loss.
    """
    terms = {}
    if student.crop_scores is not None and teacher.cls is not None:
        unit_RD, prototypes_KD = student.crop_scores
        terms["distillation"] = distillation_loss(
            (unit_RD.unflatten(0, (-1, len(batch))), prototypes_KD),
            teacher.cls,
            centers.distillation_K,
            *temperatures["distillation"],
            batch.valid_B,
            global_valid,
        )
    if student.patch_scores is not None and teacher.patch is not None:
        terms["masked_image"] = masked_image_loss(
            student.patch_scores,
            teacher.patch,
            scored_patches(batch, config),
            _target_mask(batch, config),
            centers.masked_image_K,
            *temperatures["masked_image"],
            batch.valid_B,
            global_valid,
            config.visible_weight,
        )
    return terms


def center_sums(teacher: TeacherScores, batch: Batch, config: ObjectiveConfig) -> dict[str, Tensor]:
    """Score sums that move the centres: over CLS rows and over scored patches of valid images."""
    sums = {}
    if teacher.cls is not None:
        sums["distillation"] = score_sum(teacher.cls, batch.valid_B)
    if teacher.patch is not None:
        image_M = scored_patches(batch, config) // batch.patch_mask_BL.shape[1]
        sums["masked_image"] = score_sum(teacher.patch, batch.valid_B[image_M])
    return sums


def patch_weights(batch: Batch, config: ObjectiveConfig) -> Tensor:
    """Weight of each scored patch in L_mask, [M] in float64: it sums to 1 over an image's masked patches."""
    weight_BL = patch_shares(_target_mask(batch, config), config.visible_weight, torch.double)
    return (weight_BL * batch.valid_B[:, None]).flatten()[scored_patches(batch, config)]


def weighted_total(terms: Mapping[str, Tensor], config: ObjectiveConfig) -> Tensor:
    """Sum 1/2 (L_CLIP + L^_CLIP) + alpha L_distill + beta L_mask over the terms present."""
    weights = _weights(config)
    return sum((weights[name] * term for name, term in terms.items()), torch.zeros(()))


def _weights(config: ObjectiveConfig) -> dict[str, float]:
    return {
        "contrastive_web": config.web_weight,
        "contrastive_synthetic": config.synthetic_weight,
        "distillation": config.alpha,
        "masked_image": config.beta,
    }


def _target_mask(batch: Batch, config: ObjectiveConfig) -> Tensor:
    """Mask of the patches in the loss: the masked ones, or all with a frozen teacher, which uses no masking."""
    return torch.ones_like(batch.patch_mask_BL) if config.teacher == "frozen" else batch.patch_mask_BL
