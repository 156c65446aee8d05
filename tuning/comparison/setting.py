"""Metrics and settings: runs that differ by their seed alone, and what each of them reached."""

from collections.abc import Sequence
from math import nan
from typing import Literal, NamedTuple

from tuning.comparison.run import ComparedRun, Point
from tuning.words import short

Better = Literal["higher", "lower"]
LOWER = ("loss", "rmse", "error", "perplexity")
HIGHER = ("iou", "recall", "accuracy", "hits", "top1")
"""Parts of a metric's name that say which values are better."""
FEW = 2
"""Up to so many keys are written in full in the label of a setting; of more, the last parts."""


class Metric(NamedTuple):
    """A metric that is compared."""

    name: str
    better: Better

    def best(self, values: Sequence[float]) -> float:
        return max(values) if self.better == "higher" else min(values)


class Setting(NamedTuple):
    """Runs whose configs differ by their seed alone, in the order of their seeds."""

    label: str
    params: dict[str, str]
    """Those that differ between settings."""
    runs: list[ComparedRun]


class Values(NamedTuple):
    """A metric of one run; what is not known, or not finite any more, is NaN."""

    final: float
    best: float
    equal: float
    """The last value up to the amount at which runs are compared."""
    divergence: Point | None


def metric_of(text: str) -> Metric:
    """The metric that `NAME`, `NAME:higher` or `NAME:lower` stands for.

    Raises:
        ValueError: the name does not tell which values are better.
    """
    name, _, better = text.partition(":")
    if better in ("higher", "lower"):
        return Metric(name, better)  # pyright: ignore[reportArgumentType]
    found = [kind for kind, parts in (("lower", LOWER), ("higher", HIGHER)) if any(p in name.lower() for p in parts)]
    if better or len(found) != 1:
        raise ValueError(f"metric {text}: say which values are better, as {name}:higher or {name}:lower")
    return Metric(name, found[0])  # pyright: ignore[reportArgumentType]


def differing(runs: Sequence[ComparedRun]) -> list[str]:
    """Params in which runs differ, beside name and seed."""
    keys = dict.fromkeys(key for run in runs for key in run.params)
    return [key for key in keys if len({run.params.get(key, "absent") for run in runs}) > 1]


def settings_of(runs: Sequence[ComparedRun], keys: Sequence[str]) -> list[Setting]:
    """The settings of runs that differ in `keys`, in the order of their first runs.

    Raises:
        ValueError: two runs have one setting and one seed.
    """
    groups: dict[tuple[str, ...], list[ComparedRun]] = {}
    for run in runs:
        groups.setdefault(tuple(run.params.get(key, "absent") for key in keys), []).append(run)
    found, names = [], short(keys) if len(keys) > FEW else keys
    for values, group in groups.items():
        group.sort(key=lambda run: (isinstance(run.seed, str), run.seed if isinstance(run.seed, int) else 0))
        _require_other_seeds(group)
        params = dict(zip(keys, values, strict=True))
        found.append(Setting(_label(names, values), params, group))
    return found


def _label(names: Sequence[str], values: Sequence[str]) -> str:
    return "; ".join(f"{name}={value}" for name, value in zip(names, values, strict=True)) or "all"


def _require_other_seeds(group: Sequence[ComparedRun]) -> None:
    known: dict[int | str, ComparedRun] = {}
    for run in group:
        if run.seed is not None and (other := known.setdefault(run.seed, run)) is not run:
            raise ValueError(f"{other.label} and {run.label} have one config and the seed {run.seed}: leave one out")


def values_of(run: ComparedRun, metric: Metric, until: float) -> Values:
    """The metric of a run, with its last value up to the amount `until`."""
    finite, divergence = run.values(metric.name), run.divergence(metric.name)
    equal = run.values(metric.name, until)
    has_diverged = divergence is not None and divergence.amount <= until
    return Values(
        nan if divergence or not finite else finite[-1],
        metric.best(finite) if finite else nan,
        nan if has_diverged or not equal else equal[-1],
        divergence,
    )


def paired(setting: Setting, baseline: Setting) -> list[tuple[ComparedRun, ComparedRun]]:
    """Runs of two settings that saw the same batches."""
    by_batches = {run.batches: run for run in baseline.runs if run.batches}
    return [(run, by_batches[run.batches]) for run in setting.runs if run.batches in by_batches]
