"""Compares runs: what differs in their configs, and what can be claimed of their metrics.

Runs whose configs differ by their seed alone are one setting. Settings are compared by pairs of runs with an equal
batch fingerprint, which saw the same images, crops, masks and captions; where they have none, without pairs.
"""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

from tuning.comparison import MEASURES
from tuning.comparison.measure import BATCH, Measure, common_amount, measured
from tuning.comparison.run import ComparedRun
from tuning.comparison.setting import Metric, Setting, Values, differing, settings_of, values_of
from tuning.comparison.verdicts import Verdict, verdicts_of


class Equal(NamedTuple):
    """An amount that all runs have reached, by one measure."""

    measure: Measure
    amount: float
    runs: dict[str, ComparedRun]
    """By URI, with their amounts by this measure."""

    @property
    def place(self) -> str:
        """Such as `step 200`."""
        return self.measure.words(self.amount)

    def value(self, run: ComparedRun, metric: Metric) -> float:
        """The last value of a run up to the amount; NaN: it had diverged."""
        return values_of(self.runs[run.uri], metric, self.amount).equal


class Comparison(NamedTuple):
    """All that is known of runs beside each other."""

    metrics: list[Metric]
    measure: Measure
    amount: float
    """At which settings are compared."""
    keys: list[str]
    """Params that differ between settings."""
    settings: list[Setting]
    baseline: Setting
    verdicts: list[Verdict]
    left_out: list[str]
    """Sentences about runs that are not compared."""
    also: list[Equal]
    """By the other measures, where runs have what these take."""

    @property
    def place(self) -> str:
        """Such as `step 200`."""
        return self.measure.words(self.amount)

    def values(self, run: ComparedRun, metric: Metric) -> Values:
        """The metric of a run."""
        return values_of(run, metric, self.amount)


def compared(
    runs: Sequence[ComparedRun],
    metrics: Sequence[Metric],
    baseline_of: Callable[[Sequence[Setting]], Setting] = lambda settings: settings[0],
    by: str = "step",
    ignored: Sequence[str] = (),
    left_out: Sequence[str] = (),
) -> Comparison:
    """Compare the settings of runs.

    Args:
        runs: in the order in which settings are shown.
        metrics: that are compared.
        baseline_of: chooses the setting that others are compared with.
        by: `step`, `images` or `gpu-hours`.
        ignored: patterns of params that may differ within a setting.
        left_out: sentences about runs that are not compared.

    Raises:
        ValueError: the runs cannot be compared; it says why.
    """
    known, measure = measured(runs, by)
    keys = [key for key in differing(known) if not any(fnmatchcase(key, pattern) for pattern in ignored)]
    settings = settings_of(known, keys)
    baseline = baseline_of(settings)
    amount = common_amount(known, [metric.name for metric in metrics], measure)
    others = [setting for setting in settings if setting is not baseline]
    verdicts = verdicts_of(others, baseline, metrics, amount)
    also = _equals(runs, metrics, by)
    return Comparison(list(metrics), measure, amount, keys, settings, baseline, verdicts, list(left_out), also)


def _equals(runs: Sequence[ComparedRun], metrics: Sequence[Metric], by: str) -> list[Equal]:
    """The other measures; with one batch size for all, images say no more than steps."""
    others = [measure for measure in MEASURES if measure != by]
    if len({run.facts.get(BATCH) for run in runs}) == 1:
        others.remove("step" if by == "images" else "images")
    found = []
    for other in others:
        try:
            known, measure = measured(runs, other)
            amount = common_amount(known, [metric.name for metric in metrics], measure)
        except ValueError:
            continue
        found.append(Equal(measure, amount, {run.uri: run for run in known}))
    return found
