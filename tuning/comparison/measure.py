"""Equal amounts: up to which step, image or GPU-hour runs are compared."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

from tips_ray.errors import listed
from tuning.comparison.run import ComparedRun

SHORT_HOURS = 0.1
"""Fewer hours are told in seconds."""
BATCH = "global_batch_images"


class Measure(NamedTuple):
    """What runs are compared by: an equal number of steps, images or hours."""

    by: str
    """`step`, `images` or `gpu-hours`."""
    unit: str
    """`step`, `images`, `GPU-hours` or `worker-hours`."""

    def words(self, amount: float) -> str:
        """`step 200`, `1,600 images`, `0.5 GPU-hours`."""
        if self.by == "step":
            return f"step {amount:g}" if amount < 1e6 else f"step {amount:.0f}"
        if self.by == "images":
            return f"{amount:,.0f} {self.unit}"
        if amount < SHORT_HOURS:
            return f"{3600 * amount:.4g} {self.unit.replace('hours', 'seconds')}"
        return f"{amount:.4g} {self.unit}"


def measured(runs: Sequence[ComparedRun], by: str) -> tuple[list[ComparedRun], Measure]:
    """The runs with their amounts, and what these are.

    Raises:
        ValueError: a run lacks what it takes; it names the param.
    """
    for run in runs:
        if not run.lines:
            raise ValueError(f"{run.label} has logged no step yet: wait for its first one, or leave it out")
    if by == "step":
        return [replace(run, amounts=[line.step for line in run.lines]) for run in runs], Measure(by, "step")
    if by == "images":
        return [replace(run, amounts=_images(run)) for run in runs], Measure(by, "images")
    gpus = [_fact(run, "resources.gpus_per_worker", by) for run in runs]
    if any(gpus) and not all(gpus):
        one = runs[gpus.index(0)]
        raise ValueError(f"--at {by}: {one.label} used no GPUs and others did: compare them --at step or images")
    hours = [replace(run, amounts=_hours(run, by, each or 1)) for run, each in zip(runs, gpus, strict=True)]
    return hours, Measure(by, "GPU-hours" if all(gpus) else "worker-hours")


def _fact(run: ComparedRun, key: str, by: str) -> float:
    found = run.facts.get(key)
    if isinstance(found, bool) or not isinstance(found, int | float):
        said = f"has no param {key}" if found is None else f"has {key}={found}, which is no number"
        raise ValueError(f"--at {by}: {run.label} {said}: leave it out, or compare --at step")
    return found


def _images(run: ComparedRun) -> list[float]:
    each = _fact(run, BATCH, "images")
    return [line.step * each for line in run.lines]


def _hours(run: ComparedRun, by: str, gpus: float) -> list[float]:
    """Hours of all GPUs or workers by each line.

    Time between lines of one attempt counts. The steps before an attempt's first line count at the run's median pace,
    so that neither a start nor the time between two attempts counts.
    """
    workers = _workers(run, by)
    pace = _median_pace(run, by)
    hours, found = 0.0, []
    for before, line, held in zip([None, *run.lines], run.lines, workers, strict=False):
        if before and before.attempt == line.attempt:
            seconds = line.seconds - before.seconds
        else:
            seconds = (line.step - (before.step if before else 0)) * pace
        hours += max(seconds, 0.0) * held * gpus / 3600
        found.append(hours)
    return found


def _workers(run: ComparedRun, by: str) -> list[float]:
    """For each line; a run folder knows those of each attempt, MLflow only the largest number."""
    most = _fact(run, "resources.workers", by)
    least = run.facts.get("resources.min_workers")
    is_known = all(line.workers for line in run.lines)
    if least not in (None, most) and not is_known:
        raise ValueError(
            f"--at {by}: {run.label} had between {least} and {most:g} workers, and how many at which time is not "
            "known from here: give its run folder, leave it out, or compare --at step"
        )
    return [line.workers or most for line in run.lines]


def _median_pace(run: ComparedRun, by: str) -> float:
    """Seconds of a step."""
    pairs = zip(run.lines, run.lines[1:], strict=False)
    paces = [
        (line.seconds - before.seconds) / (line.step - before.step)
        for before, line in pairs
        if line.attempt == before.attempt and line.step > before.step
    ]
    if not paces:
        raise ValueError(f"--at {by}: {run.label} has logged no two steps in one go: leave it out, or wait")
    return median(paces)


def common_amount(runs: Sequence[ComparedRun], metrics: Sequence[str], measure: Measure) -> float:
    """The largest amount that all runs have reached; one that diverged counts only where all of them have.

    Raises:
        ValueError: a run has no finite value of a metric up to there; it names those there are.
    """
    healthy = [run for run in runs if not any(map(run.divergence, metrics))]
    amount = min(run.amounts[-1] for run in healthy or runs)
    for run in healthy:
        for metric in metrics:
            if not run.values(metric, amount):
                raise ValueError(
                    f"{run.label} has no finite value of {metric} up to {measure.words(amount)}; it has "
                    f"{listed(run.names)}"
                )
    return amount
