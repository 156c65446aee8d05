"""Whether the targets of a prototype head tell the student something, in words. K prototypes; see docs/training.md."""

from collections.abc import Iterator, Sequence
from math import log, nan
from statistics import median
from typing import Literal, NamedTuple

from tips_ray.config import ObjectiveConfig, RunConfig
from tips_ray.runs.curves import Curves, Point, thinned

Level = Literal["early", "good", "watch", "ill"]
SLOWER = "lower schedule.peak_lr, lengthen schedule.warmup"
SETTLED_POINTS, SETTLED_STEPS = 20, 80
"""Logged and optimizer steps after the warm-up from which on a loss at chance is ill; before it is watched."""
LEAST_INFORMATION = 0.2
"""(D) Nats. Runs of 250 steps that learned something had 0.87 to 1.3 at their end, one that learned nothing 0.05."""
INFORMATION_LINES = 5
"""(D) Logged steps in a row that must be below it; each has seen at least 512 images."""
FEW_WINNERS = 0.03
"""(D) Share of the prototypes that could win since the last logged step. Where targets swung it was 1 to 5 in 320
images, mostly 2 %; where they did not, 4 % or more."""
SWING = 0.9
"""(D) Nats by which the entropy of targets both falls and rises within the last half. Of runs on rendered scenes the
steady ones had 0 to 0.9, the demo 1.6, and those whose distillation ended above ln K 1.6 to 4."""


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: Level
    about: str
    seen: str
    """What is seen, with numbers."""
    cure: str = ""
    """What to try; empty where nothing is wrong."""
    short: str = ""
    """A few words for a progress line, where it is ill."""


def is_settled(config: RunConfig, curves: Curves) -> bool:
    """Whether training has gone on for so long that a loss should have moved."""
    return len(curves) >= SETTLED_POINTS and curves.step >= config.schedule.warmup_steps + SETTLED_STEPS


def empty_targets(head: str, config: RunConfig, curves: Curves) -> Iterator[Finding]:
    """Targets that are collapsed or uniform, or of which the student predicts nothing."""
    about, prototypes = f"{head} targets", config.head.num_prototypes
    entropy, share = (curves.recent(f"health/{head}/{name}") for name in ("target_entropy", "target_entropy_share"))
    used = curves.recent(f"health/{head}/prototype_usage") * prototypes
    beside = f"the teacher's entropy is {entropy:.2f} of at most ln {prototypes} = {log(prototypes):.2f}"
    temperature = config.objective.teacher_temperature
    if share < 0.5 and used < 1.5:
        cure = "lower objective.center_momentum (1 never centres), raise objective.teacher_temperature, "
        seen = f"collapsed: one of {prototypes} prototypes takes every row, {beside}"
        yield Finding("ill", about, seen, f"{cure}{SLOWER}", f"{head} collapsed to one prototype")
    elif share < 0.01:
        seen, cure = f"one-hot: {beside}", f"raise objective.teacher_temperature ({temperature:.3g}) and its start"
        yield Finding("ill", about, seen, cure, f"{head} targets one-hot")
    elif share > 0.95:
        cure = f"lower objective.teacher_temperature ({temperature:.3g}), raise objective.center_momentum, "
        seen = f"{'uniform' if share > 0.98 else 'nearly uniform'}: {beside}, so they tell the student little"
        level = "ill" if share > 0.98 else "watch"
        yield Finding(level, about, seen, f"{cure}{SLOWER}", f"{head} targets uniform")
    else:
        yield from _uninformative(head, config, curves)


def unsteady_targets(head: str, config: RunConfig, curves: Curves) -> Iterator[Finding]:
    """Targets that few prototypes win, or that swing; runs with both end with a student above ln K."""
    about, objective = f"{head} targets", config.objective
    winners, possible = _winners(head, config, curves)
    is_few, swing = winners < FEW_WINNERS * possible, _swing(head, curves)
    few = f"{winners:.0f} prototypes win all rows, of {possible:,} that could, so that many images share one"
    swings = f"their entropy swings by {swing:.1f} nats, so that a student learns and forgets what they say"
    cure = steadier(objective)
    if is_few and swing > SWING and is_settled(config, curves):
        yield Finding("ill", about, f"{few}; {swings}", cure, f"{head} targets swing between few prototypes")
    elif is_few or swing > SWING:
        yield Finding("watch", about, "; ".join([few] * is_few + [swings] * (swing > SWING)), cure)


def steadier(objective: ObjectiveConfig) -> str:
    """What makes targets steadier, of what the run does not have already."""
    start = "objective.center_start=bias_corrected, " * (objective.center_start == "zero")
    return (
        f"{start}lower objective.center_momentum ({objective.center_momentum:g}) or "
        f"raise objective.ema_momentum ({objective.ema_momentum:g})"
    )


def _uninformative(head: str, config: RunConfig, curves: Curves) -> Iterator[Finding]:
    """The student predicts hardly more of a target than their mean; `mutual_information` says whose fault it is."""
    values = [value for _, value in curves.points(f"health/{head}/information")][-INFORMATION_LINES:]
    if len(values) < INFORMATION_LINES or max(values) >= LEAST_INFORMATION:
        return
    told = curves.recent(f"health/{head}/mutual_information")
    seen = f"the student predicts {max(median(values), 0):.2f} nats of them, and they differ by {max(told, 0):.2f} nats"
    temperature = config.objective.teacher_temperature
    cure = f"{SLOWER}, raise objective.ema_momentum or objective.student_temperature"
    if told < LEAST_INFORMATION:
        cure = f"lower objective.teacher_temperature ({temperature:.3g}) and its start, or head.bottleneck; {SLOWER}"
    level = "ill" if is_settled(config, curves) else "watch"
    short = f"{head} learns nothing of single images"
    yield Finding(level, f"{head} targets", f"hardly anything of single images: {seen}", cure, short)


def _winners(head: str, config: RunConfig, curves: Curves) -> tuple[float, int]:
    """Prototypes that won a row, median of the last half, and how many could; nan where the metric is missing.

    Distillation counts all steps since the last logged one, masked prediction the rows of the logged step.
    """
    prototypes, views = config.head.num_prototypes, config.views
    rows = config.global_batch_images * config.log_every_steps
    if head == "masked_image":
        patches = (views.global_px // config.image.patch_size_px) ** 2
        rows = int(config.global_batch_images * patches * (views.mask_ratio or 1))
    usage = [share for _, share in _last_half(curves.points(f"health/{head}/prototype_usage"))]
    return median(usage) * prototypes if usage else nan, min(prototypes, rows)


def _swing(head: str, curves: Curves) -> float:
    """Nats by which the entropy of targets both fell and rose within the last half; 0 for one that only falls."""
    points = thinned(_last_half(curves.points(f"health/{head}/target_entropy")))
    rise = fall = 0.0
    lowest = highest = points[0][1] if points else 0.0
    for _, entropy in points:
        lowest, highest = min(lowest, entropy), max(highest, entropy)
        rise, fall = max(rise, entropy - lowest), max(fall, highest - entropy)
    return min(rise, fall)


def _last_half(points: Sequence[Point]) -> Sequence[Point]:
    return points[len(points) // 2 :]
