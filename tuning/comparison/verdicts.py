"""Verdicts on settings: over pairs of runs on the same batches where there are some, else over all runs."""

from collections.abc import Sequence
from math import isfinite, nan
from typing import NamedTuple

from tuning.comparison.run import ComparedRun
from tuning.comparison.setting import Metric, Setting, paired, values_of
from tuning.comparison.verdict import Claim, Difference, claims, difference, fewest_pairs, holm


class Pair(NamedTuple):
    """Two runs on the same batches."""

    run: ComparedRun
    baseline: ComparedRun
    gain: float
    """By how much the first is better."""


class Verdict(NamedTuple):
    """A setting against the baseline, in one metric."""

    setting: Setting
    metric: Metric
    difference: Difference | None
    """None: on one side all runs had diverged by then."""
    pairs: list[Pair]
    alone: int
    """Runs of the setting that are in no pair, where others are."""
    claim: Claim
    p: float
    """By Holm's rule over all comparisons."""
    more_seeds: int
    """Fewest further seeds of both that a claim needs."""
    is_withheld: bool
    """The numbers would give a claim, but a run of the side that looks better has diverged."""


def verdicts_of(
    others: Sequence[Setting], baseline: Setting, metrics: Sequence[Metric], amount: float
) -> list[Verdict]:
    """Verdicts on each setting and metric at the last values up to `amount`.

    A run that had diverged by then has no value there, and its pair is left out. A side with a run that diverged, then
    or later, is never called the better one: what is left of it is its luckier part.
    """
    found = [_difference(setting, baseline, metric, amount) for setting in others for metric in metrics]
    known = [one for one, _ in found if one]
    judged = iter(zip(claims(known), holm([one.p for one in known]), strict=True))
    places = [(setting, metric) for setting in others for metric in metrics]
    verdicts = []
    for (setting, metric), (one, pairs) in zip(places, found, strict=True):
        claim, p = next(judged) if one else ("no claim", nan)
        more = fewest_pairs(len(places)) - (one.seeds if one else 0)
        winner = {"better": setting, "worse": baseline}.get(claim)
        is_withheld = winner is not None and any(run.divergence(metric.name) for run in winner.runs)
        alone = len(setting.runs) - len(matched) if (matched := paired(setting, baseline)) else 0
        shown = "no claim" if is_withheld else claim
        verdicts.append(Verdict(setting, metric, one, pairs, alone, shown, p, max(more, 0), is_withheld))
    return verdicts


def _difference(
    setting: Setting, baseline: Setting, metric: Metric, amount: float
) -> tuple[Difference | None, list[Pair]]:
    """The difference of runs that have a value there, and their pairs."""

    def value(run: ComparedRun) -> float:
        return values_of(run, metric, amount).equal

    sign = 1.0 if metric.better == "higher" else -1.0
    matched = paired(setting, baseline)
    pairs = [Pair(run, other, sign * (value(run) - value(other))) for run, other in matched]
    pairs = [pair for pair in pairs if isfinite(pair.gain)]
    sides = (
        [[pair.run for pair in pairs], [pair.baseline for pair in pairs]] if matched else [setting.runs, baseline.runs]
    )
    ours, theirs = ([one for one in map(value, side) if isfinite(one)] for side in sides)
    found = difference(ours, theirs, metric.better, bool(matched)) if ours and theirs else None
    return found, pairs
