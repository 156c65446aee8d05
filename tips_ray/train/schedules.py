"""Pure functions of the step, so that nothing has to be restored."""

import math

from tips_ray.config import ObjectiveConfig, ScheduleConfig, StartConfig


def learning_rate(step: int, config: ScheduleConfig) -> float:
    """Rate of the update that leads from `step` to `step + 1`: linear warm-up, then a half cosine.

    The first update has peak/warmup_steps, update number warmup_steps has the peak, the last has the final rate.
    """
    if step < config.warmup_steps:
        return config.peak_lr * (step + 1) / config.warmup_steps
    remaining = max(config.total_steps - 1 - config.warmup_steps, 1)
    progress = min((step - config.warmup_steps) / remaining, 1.0)
    ratio = config.final_lr_ratio
    return config.peak_lr * (ratio + (1 - ratio) * (1 + math.cos(math.pi * progress)) / 2)


def teacher_temperature(step: int, total_steps: int, config: ObjectiveConfig) -> float:
    """Linear from the start value at step 0 to the final one at the end of the warm-up."""
    warmup_steps = config.teacher_temperature_warmup * total_steps
    progress = min(step / warmup_steps, 1.0) if warmup_steps else 1.0
    start = config.teacher_temperature_start
    return start + (config.teacher_temperature - start) * progress


def prototypes_frozen(step: int, total_steps: int, config: ObjectiveConfig) -> bool:
    """True while the prototypes do not move."""
    return step < config.prototype_freeze * total_steps


def encoders_frozen(step: int, config: StartConfig | None) -> bool:
    """True while the prototype heads alone move."""
    return config is not None and step < config.warmup_heads_steps
