"""Schedules: pure functions of the step, so that nothing has to be restored."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from tips_ray.config import ObjectiveConfig, OptimizerConfig, ScheduleConfig, StartConfig, TrainConfig
from tips_ray.objective import Temperatures

PartT = TypeVar("PartT", ObjectiveConfig, OptimizerConfig, ScheduleConfig)


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """Rate of the update that leads from `step` to `step + 1`: linear warm-up, then the schedule's shape.

    The first update has peak/warmup_steps, update number warmup_steps has the peak, the last has the final rate. The
    first update of a cooldown lies one of its steps below the peak.
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    if config.shape == "cosine":
        left = _half_cosine((step - config.warmup_steps) / max(config.total_steps - 1 - config.warmup_steps, 1))
    else:
        left = min(max((config.total_steps - 1 - step) / config.cooldown_steps, 0.0), 1.0)
    return config.peak_lr * (config.final_lr_ratio + (1 - config.final_lr_ratio) * left)


def prototype_temperatures(step: int, total_steps: int, config: ObjectiveConfig) -> dict[str, Temperatures]:
    """Temperatures of `distillation` and `masked_image`, which has those of the former where it has none of its own.

    The teacher's are linear from their start at step 0 to their end at the end of the warm-up.
    """
    warmup_steps = config.teacher_temperature_warmup * total_steps
    progress = min(step / warmup_steps, 1.0) if warmup_steps else 1.0

    def at_step(student: float, start: float, end: float) -> Temperatures:
        return Temperatures(student, start + (end - start) * progress)

    shared = config.student_temperature, config.teacher_temperature_start, config.teacher_temperature
    own = config.masked_student_temperature, config.masked_teacher_temperature_start, config.masked_teacher_temperature
    masked = (mine or theirs for mine, theirs in zip(own, shared, strict=True))
    return {"distillation": at_step(*shared), "masked_image": at_step(*masked)}


def ema_momentum(step: int, total_steps: int, config: ObjectiveConfig) -> float:
    """Share of the old teacher that the update from `step` keeps: the first value at step 0, the final at the last."""
    if config.ema_momentum_final is None:
        return config.ema_momentum
    left = _half_cosine(step / max(total_steps - 1, 1))
    return config.ema_momentum_final + (config.ema_momentum - config.ema_momentum_final) * left


def center_momentum(moves: int, config: ObjectiveConfig) -> float:
    """Share of the old centre that the next move keeps, after `moves` others.

    Bias-corrected, the centre after n moves is the mean of n batches with weights 1, mu, mu^2, ... from the newest to
    the oldest. It keeps 1 - 1 / (1 + mu + ... + mu^moves): 0 at the first move, mu in the end; with mu = 1 all batches
    weigh alike. Started at zero, the centre has mu^n of its first value still in it.

    Source: Adam, arXiv:1412.6980, section 3.
    """
    momentum = config.center_momentum
    if config.center_start == "zero":
        return momentum
    weights = moves + 1 if momentum == 1 else (1 - momentum ** (moves + 1)) / (1 - momentum)
    return 1 - 1 / weights


def prototypes_frozen(step: int, total_steps: int, config: ObjectiveConfig) -> bool:
    """True while the prototypes do not move."""
    return step < config.prototype_freeze * total_steps


def encoders_frozen(step: int, config: StartConfig | None) -> bool:
    """True while the prototype heads alone move."""
    return config is not None and step < config.warmup_heads_steps


def config_at(step: int, config: TrainConfig) -> TrainConfig:
    """`config` as the update from `step` sees it, with `schedule.changes` up to this step made."""
    changes = [change for change in config.schedule.changes if change.from_step <= step]
    values = {key: value for change in changes for key, value in change if value is not None}
    parts = {name: _replaced(getattr(config, name), values) for name in ("objective", "optimizer", "schedule")}
    return config.model_copy(update=parts) if changes else config


def _replaced(part: PartT, values: Mapping[str, Any]) -> PartT:
    return part.model_copy(update={key: values[key] for key in values.keys() & type(part).model_fields})


def _half_cosine(progress: float) -> float:
    """From 1 at 0 to 0 at 1 and beyond."""
    return (1 + math.cos(math.pi * min(progress, 1.0))) / 2
