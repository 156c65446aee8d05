"""What a sweep will take, told before it starts."""

from tips_ray.config.run import RunConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.launch.sizes import parameters
from tips_ray.words import bytes_text
from tuning.sweeps.space import settings_of


def forecast(config: SweepConfig, base: RunConfig, seconds_per_step: float | None = None) -> str:
    """A line with trials, steps, disk, and time where it is known.

    Args:
        config: of the sweep.
        base: the run that all settings start from.
        seconds_per_step: of the trials so far; None: there are none.
    """
    settings, rungs = settings_of(config), config.all_rungs(base)
    trials, steps = settings * config.replicas, _steps(config, settings, rungs) * config.replicas
    student, teacher = parameters(base)
    saved = 4 * (3 * student + teacher)  # fp32: weights, AdamW's two averages, the teacher
    disk = bytes_text(trials * base.keep_last * saved)
    share = steps / (trials * rungs[-1])
    told = f" ({share:.0%} of training all to the end)" if share < 1 else ""
    gpus = base.resources.workers * base.resources.gpus_per_worker
    hours = None if seconds_per_step is None else steps * seconds_per_step / 3600
    cost = f" ({hours * gpus:.2f} GPU-hours)" if hours and gpus else ""
    time = "" if hours is None else f", about {hours:.2f} trial-hours{cost}"
    return f"forecast   in all {trials} trials, about {steps:,} steps{told}{time}; {disk} of checkpoints"


def _steps(config: SweepConfig, settings: int, rungs: tuple[int, ...]) -> int:
    """Steps of one seed where one in `keep` goes on from each rung."""
    if config.scheduler in ("none", "pbt"):
        return settings * rungs[-1]
    total, going, before = 0, settings, 0
    for step in rungs:
        total, going, before = total + going * (step - before), max(going // config.keep, 1), step
    return total
