"""A plain optimizer step: the reference for results and speed of `tips_ray.train.step`.

It has one encoder pass per view, per local crop and per caption, prototype heads on every patch, and losses as the
equations are written. It updates optimizer, teacher and centres one tensor at a time. It knows no switch of TIPSv2.
B images, V local crops, L patches, M masked patches, D width, K prototypes.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.batch import Batch
from tips_ray.config import TrainConfig
from tips_ray.models.heads import PrototypeHead
from tips_ray.models.networks import Student, Teacher, drawn_captions
from tips_ray.objective import Centers
from tips_ray.train.optim import parameter_groups, set_rates
from tips_ray.train.schedules import learning_rate, prototype_temperatures, prototypes_frozen
from tips_ray.train.state import TrainState


def plain_state(state: TrainState, config: TrainConfig) -> TrainState:
    """A copy of `state` at step 0, with an optimizer that updates one tensor at a time.

    Raises:
        ValueError: the objective has a switch that the plain step does not support.
    """
    objective = config.objective
    unknown = {
        "image.drop_path_rate": config.image.drop_path_rate > 0,
        "objective.teacher": objective.teacher != "ema",
        "objective.contrastive_view": objective.contrastive_view != "clean",
        "objective.visible_weight": objective.visible_weight > 0,
        "objective.alpha or beta": not objective.alpha or not objective.beta,
    }
    if any(unknown.values()):
        raise ValueError(f"the plain step knows TIPS alone; off its course: {[key for key in unknown if unknown[key]]}")
    student, teacher = copy.deepcopy(state.student), copy.deepcopy(state.teacher)
    groups = parameter_groups(student, config.optimizer)
    optimizer = torch.optim.AdamW(groups, lr=0.0, betas=config.optimizer.betas, foreach=False, fused=False)
    return TrainState(student, teacher, copy.deepcopy(state.centers), optimizer)


def plain_step(
    state: TrainState, batch: Batch, config: TrainConfig, dtype: torch.dtype | None = None
) -> dict[str, Tensor]:
    """Advance `state` by one update; return the metrics of `train_step`. `dtype` is for autocast."""
    with torch.autocast(batch.global_crops_BCHW.device.type, dtype, enabled=dtype is not None):
        outputs = _forward(state.student, batch)
        targets = _targets(state.teacher, batch)
    terms = _losses(outputs, targets, state, batch, config)
    terms["total"].backward()
    grad_norm = _update(state, config)
    _update_teacher(state.teacher, state.student, config.objective.ema_momentum)
    _update_centers(state.centers, targets, batch, config.objective.center_momentum)
    state.step += 1
    return {**{f"loss/{name}": term.detach() for name, term in terms.items()}, "grad_norm": grad_norm}


class _Outputs(NamedTuple):
    cls_web_BD: Tensor
    cls_synthetic_BD: Tensor
    web_caption_BD: Tensor
    synthetic_caption_BD: Tensor
    crop_scores: list[Tensor]
    """Scores [B, K] of each local crop."""
    patch_scores_BLK: Tensor


class _Targets(NamedTuple):
    cls_BK: Tensor
    patch_BLK: Tensor


def _forward(student: Student, batch: Batch) -> _Outputs:
    clean = student.image(batch.global_crops_BCHW)
    masked = student.image(batch.global_crops_BCHW, batch.patch_mask_BL)
    crop_scores = []
    for crops_BCHW in batch.local_crops_VBCHW:
        crop_scores.append(_scores(student.heads.distillation, student.image(crops_BCHW).cls_web_BD))
    web_BD = student.text(batch.web_ids_BT)
    synthetic_BD = student.text(drawn_captions(batch.synthetic_ids_BAT, batch.key_B))
    patch_scores_BLK = _scores(student.heads.masked_image, masked.patches_BLD)
    return _Outputs(clean.cls_web_BD, clean.cls_synthetic_BD, web_BD, synthetic_BD, crop_scores, patch_scores_BLK)


@torch.no_grad()
def _targets(teacher: Teacher, batch: Batch) -> _Targets:
    assert teacher.image is not None
    features = teacher.image(batch.global_crops_BCHW)
    return _Targets(
        _scores(teacher.heads.distillation, features.cls_web_BD),
        _scores(teacher.heads.masked_image, features.patches_BLD),
    )


def _scores(head: PrototypeHead, features_D: Tensor) -> Tensor:
    """All scores [..., K], as the head's equations are written."""
    return F.linear(F.normalize(head.mlp(features_D), dim=-1), F.normalize(head.prototypes, dim=-1))


def _losses(
    outputs: _Outputs, targets: _Targets, state: TrainState, batch: Batch, config: TrainConfig
) -> dict[str, Tensor]:
    objective, valid_B = config.objective, batch.valid_B
    temperatures = prototype_temperatures(state.step, config.schedule.total_steps, objective)
    temperature = state.student.log_temperature.exp()
    web = _info_nce(outputs.cls_web_BD[valid_B], outputs.web_caption_BD[valid_B], temperature)
    synthetic = _info_nce(outputs.cls_synthetic_BD[valid_B], outputs.synthetic_caption_BD[valid_B], temperature)
    distillation = _distillation(outputs, targets, state.centers, batch, *temperatures["distillation"])
    masked_image = _masked_image(outputs, targets, state.centers, batch, *temperatures["masked_image"])
    return {
        "contrastive_web": web,
        "contrastive_synthetic": synthetic,
        "distillation": distillation,
        "masked_image": masked_image,
        "total": (web + synthetic) / 2 + objective.alpha * distillation + objective.beta * masked_image,
    }


def _distillation(
    outputs: _Outputs, targets: _Targets, centers: Centers, batch: Batch, student_tau: float, teacher_tau: float
) -> Tensor:
    probability_BK = F.softmax((_full(targets.cls_BK) - centers.distillation_K) / teacher_tau, dim=-1)
    losses = []
    for scores_BK in outputs.crop_scores:
        losses.append(_cross_entropy(scores_BK, probability_BK, student_tau)[batch.valid_B].mean())
    return torch.stack(losses).mean()


def _masked_image(
    outputs: _Outputs, targets: _Targets, centers: Centers, batch: Batch, student_tau: float, teacher_tau: float
) -> Tensor:
    mask_BL = batch.patch_mask_BL
    target_MK = _full(targets.patch_BLK[mask_BL])
    probability_MK = F.softmax((target_MK - centers.masked_image_K) / teacher_tau, dim=-1)
    loss_M = _cross_entropy(outputs.patch_scores_BLK[mask_BL], probability_MK, student_tau)
    loss_BL = torch.zeros(mask_BL.shape, dtype=loss_M.dtype, device=loss_M.device).masked_scatter(mask_BL, loss_M)
    return (loss_BL.sum(dim=1) / mask_BL.sum(dim=1).clamp(min=1))[batch.valid_B].mean()


def _info_nce(image_BD: Tensor, text_BD: Tensor, temperature: Tensor) -> Tensor:
    logits_BB = F.normalize(_full(image_BD), dim=-1) @ F.normalize(_full(text_BD), dim=-1).T / temperature
    image_to_text = -F.log_softmax(logits_BB, dim=1).diagonal().mean()
    text_to_image = -F.log_softmax(logits_BB, dim=0).diagonal().mean()
    return (image_to_text + text_to_image) / 2


def _cross_entropy(student_RK: Tensor, probability_RK: Tensor, student_temperature: float) -> Tensor:
    return -(probability_RK * F.log_softmax(_full(student_RK) / student_temperature, dim=-1)).sum(dim=-1)


def _full(values: Tensor) -> Tensor:
    """`values` in float32, or unchanged in float64."""
    return values if values.dtype == torch.float64 else values.float()


def _update(state: TrainState, config: TrainConfig) -> Tensor:
    if prototypes_frozen(state.step, config.schedule.total_steps, config.objective):
        state.student.heads.distillation.prototypes.grad = None
        state.student.heads.masked_image.prototypes.grad = None
    grad_norm = _clip(state.student, config.optimizer.max_grad_norm)
    set_rates(state.optimizer, learning_rate(state.step, config.schedule), config.optimizer.weight_decay)
    state.optimizer.step()
    state.optimizer.zero_grad()
    return grad_norm


def _clip(student: nn.Module, max_norm: float) -> Tensor:
    """Clip gradients; return their norm before clipping. Frozen prototypes have no gradient and do not count."""
    gradients = [parameter.grad for parameter in student.parameters() if parameter.grad is not None]
    norm = torch.stack([gradient.square().sum() for gradient in gradients]).sum().sqrt()
    for gradient in gradients:
        gradient.mul_((max_norm / (norm + 1e-6)).clamp(max=1))
    return norm


@torch.no_grad()
def _update_teacher(teacher: Teacher, student: Student, momentum: float) -> None:
    sources = dict(student.named_parameters())
    for name, target in teacher.named_parameters():
        target.copy_(momentum * target + (1 - momentum) * sources[name])


def _update_centers(centers: Centers, targets: _Targets, batch: Batch, momentum: float) -> None:
    counted_BL = batch.patch_mask_BL & batch.valid_B[:, None]
    for center_K, scores_RK in (
        (centers.distillation_K, targets.cls_BK[batch.valid_B]),
        (centers.masked_image_K, targets.patch_BLK[counted_BL]),
    ):
        if len(scores_RK):
            center_K.copy_(momentum * center_K + (1 - momentum) * _full(scores_RK).mean(dim=0))
