"""A comparison in words: what the terminal shows."""

from collections.abc import Iterator, Sequence
from math import isfinite
from statistics import fmean, stdev

from tips_ray.config.sweep import WEIGHTS
from tuning.comparison.compare import Comparison, Equal
from tuning.comparison.setting import Metric, Setting
from tuning.comparison.verdict import Difference
from tuning.comparison.verdicts import Verdict
from tuning.words import counted

COLUMNS = ("final", "best", "equal")
"""Fields of `Values` that are shown as numbers."""


def lines_of(found: Comparison) -> Iterator[str]:
    """All that the terminal shows."""
    yield from (f"left out: {sentence}" for sentence in found.left_out)
    yield f"differ in: {', '.join(found.keys) or 'nothing but their seeds'}"
    yield from (f"note: {sentence}" for sentence in notes(found))
    for setting in found.settings:
        yield f"{named(found, setting)}: {counted(len(setting.runs), 'run')}, {seeds(setting)}"
        for metric in found.metrics:
            final, best, equal = (mean(found, setting, metric, column) for column in COLUMNS)
            yield f"  {metric.name}: final {final}, best {best}, at {found.place} {equal}"
            if found.also:
                yield f"    also {', '.join(f'at {one.place} {mean_at(setting, metric, one)}' for one in found.also)}"
        yield from (f"  {sentence}" for sentence in troubles(found, setting))
    for verdict in found.verdicts:
        yield headline(found, verdict)
        yield from (f"  {sentence}" for sentence in reasons(found, verdict))


def notes(found: Comparison) -> Iterator[str]:
    """What a reader must know before the numbers."""
    weights = [key for key in found.keys if key in WEIGHTS]
    if weights and any(metric.name == "loss/total" for metric in found.metrics):
        yield (
            f"loss/total sums the losses by {', '.join(weights)}, which differ: it does not say which setting is "
            "better; give --metric with one of the losses or a score"
        )


def named(found: Comparison, setting: Setting) -> str:
    return f"{setting.label} (baseline)" if setting is found.baseline else setting.label


def seeds(setting: Setting) -> str:
    known = [str(run.seed) for run in setting.runs if run.seed is not None]
    unknown = len(setting.runs) - len(known)
    if not known:
        return "seeds unknown"
    return f"seeds {', '.join(known)}" + (f" and {unknown} unknown" if unknown else "")


def mean(found: Comparison, setting: Setting, metric: Metric, column: str) -> str:
    """Mean and, of several runs, standard deviation; over how many of them where not all have a value."""
    every = [found.values(run, metric) for run in setting.runs]
    known = every if column == "equal" else [one for one in every if not one.divergence]
    return _mean([getattr(one, column) for one in known], len(every))


def mean_at(setting: Setting, metric: Metric, equal: Equal) -> str:
    """The same at an amount of another measure."""
    return _mean([equal.value(run, metric) for run in setting.runs], len(setting.runs))


def _mean(values: Sequence[float], runs: int) -> str:
    finite = [value for value in values if isfinite(value)]
    if not finite:
        return "diverged"
    spread = f" ± {stdev(finite):.2g}" if len(finite) > 1 else ""
    part = f" ({len(finite)} of {counted(runs, 'run')})" if len(finite) < runs else ""
    return f"{fmean(finite):.4g}{spread}{part}"


def troubles(found: Comparison, setting: Setting) -> Iterator[str]:
    """Sentences about runs that diverged or have not finished."""
    for metric in found.metrics:
        for run in setting.runs:
            if point := run.divergence(metric.name):
                yield f"{run.label}, seed {run.seed}: {metric.name} diverged at step {point.step}"
    for run in setting.runs:
        if run.status not in ("", "FINISHED"):
            yield f"{run.label}, seed {run.seed}: MLflow has it as {run.status}"


def headline(found: Comparison, verdict: Verdict) -> str:
    sides = f"{verdict.setting.label} against {found.baseline.label}"
    return f"{sides}, {verdict.metric.name} at {found.place}: {verdict.claim}"


def reasons(found: Comparison, verdict: Verdict) -> Iterator[str]:
    """Sentences that say how a verdict comes about, and what a claim needs."""
    one, several = verdict.difference, len(found.verdicts)
    yield described(found, verdict, one) if one else f"on one side every run had diverged by {found.place}"
    if one and several > 1 and isfinite(one.low):
        yield f"p {verdict.p:.2g} as one of {several} comparisons"
    yield from _about_diverged(found, verdict)
    if verdict.alone:
        yield f"{counted(verdict.alone, 'run')} of {verdict.setting.label} in no pair, not counted"
    if verdict.claim == "no claim" and verdict.more_seeds and not verdict.is_withheld:
        yield f"a claim needs at least {counted(verdict.more_seeds, 'more seed')} of both"


def _about_diverged(found: Comparison, verdict: Verdict) -> Iterator[str]:
    for setting in (verdict.setting, found.baseline):
        points = [run.divergence(verdict.metric.name) for run in setting.runs]
        before = sum(point is not None and point.amount <= found.amount for point in points)
        after = sum(point is not None and point.amount > found.amount for point in points)
        every = f"of {counted(len(points), 'run')} of {setting.label}"
        if before:
            yield f"{before} {every} had diverged by then: not in the numbers"
        if after:
            yield f"{after} {every} diverged later"
    if verdict.is_withheld:
        yield "no claim, because a run of the side that looks better diverged"


def described(found: Comparison, verdict: Verdict, one: Difference) -> str:
    """How large a difference is, how certain, and by which runs."""
    better = verdict.metric.better
    other = "lower" if better == "higher" else "higher"
    way, low, high = (better, one.low, one.high) if one.mean > 0 else (other, -one.high, -one.low)
    interval = f" ({low:.3g} to {high:.3g}), p {one.p:.2g}" if isfinite(low) else ", one seed has no interval"
    how = f"{counted(one.seeds, 'pair')} on the same batches" if one.is_paired else _why_unpaired(found, verdict)
    if one.saved is not None:
        how += f"; pairs correlate by {one.correlation:.2f} and save {one.saved:.0%} of the variance"
    return f"{abs(one.mean):.3g} {way}{interval}, {how}"


def _why_unpaired(found: Comparison, verdict: Verdict) -> str:
    runs = [*verdict.setting.runs, *found.baseline.runs]
    lacking = sum(not run.batches for run in runs)
    if lacking:
        return f"no pairs: {lacking} of {counted(len(runs), 'run')} without batch_fingerprint"
    return "no pairs: the runs saw other batches"
