"""Compares runs: what differs in their configs, and what can be claimed of their metrics.

Runs whose configs differ by their seed alone are one setting. Settings are compared by pairs of runs with an equal
batch fingerprint, which saw the same images, crops, masks and captions; where they have none, without pairs.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import product
from math import isfinite
from typing import Any, Literal, NamedTuple

from tips_ray import storage
from tips_ray.errors import listed
from tips_ray.runs import RunFolder
from tips_ray.runs.folder import deciding, require_run
from tips_ray.runs.run import run_at
from tuning.verdict import Difference, difference

Better = Literal["higher", "lower"]
LOWER = ("loss", "rmse", "error", "perplexity")
HIGHER = ("iou", "recall", "accuracy", "hits", "top1")
"""Parts of a metric's name that say which values are better."""


class Metric(NamedTuple):
    """A metric that is compared."""

    name: str
    better: Better

    def best(self, values: Sequence[float]) -> float:
        return max(values) if self.better == "higher" else min(values)


class ComparedRun:
    """A run folder, read when it is asked for."""

    def __init__(self, uri: str) -> None:
        require_run(uri := storage.resolved(uri))
        self.uri, self.run = uri, run_at(uri)
        self.seed = self.run.config.seed
        self.params = deciding(self.run.config.model_dump(mode="json"))
        del self.params["name"], self.params["seed"]
        self.params["data"] = self.run.data_fingerprint[:12]

    @cached_property
    def batches(self) -> str:
        """Its batch fingerprint; empty where the run has not stored its vocabulary or its data yet."""
        try:
            return self.run.batch_fingerprint() if self.run.data_fingerprint else ""
        except storage.NotFoundError:
            return ""

    @cached_property
    def lines(self) -> list[dict[str, Any]]:
        """Metrics by step; of repeated steps the latest count."""
        return RunFolder(self.uri).read_metrics()

    def values(self, metric: str, until: float = float("inf")) -> list[float]:
        """Finite values in the order of their steps, up to a step."""
        held = (line.get(metric) for line in self.lines if line["step"] <= until)
        return [value for value in held if value is not None and isfinite(value)]


class Setting(NamedTuple):
    """Runs whose configs differ by their seed alone, in the order of their seeds."""

    label: str
    runs: list[ComparedRun]


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
    """Config keys in which runs differ, beside name and seed."""
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
    for group in groups.values():
        group.sort(key=lambda run: run.seed)
        for run, other in zip(group, group[1:], strict=False):
            if run.seed == other.seed:
                raise ValueError(f"{run.uri} and {other.uri} have one config and the seed {run.seed}: leave one out")
    label = "; ".join
    return [
        Setting(label(f"{key}={value}" for key, value in zip(keys, values, strict=True)) or "all", group)
        for values, group in groups.items()
    ]


def common_step(runs: Sequence[ComparedRun], metrics: Sequence[Metric]) -> int:
    """The last step that all runs have logged.

    Raises:
        ValueError: a run has logged nothing, or lacks a metric up to there; it names those there are.
    """
    for run in runs:
        if not run.lines:
            raise ValueError(f"{run.uri} has logged no step yet: wait for its first one, or leave it out")
    step = min(run.lines[-1]["step"] for run in runs)
    for run, metric in product(runs, metrics):
        if not run.values(metric.name, step):
            there = sorted({name for line in run.lines for name in line} - {"step", "time"})
            raise ValueError(
                f"{run.uri} has no finite value of {metric.name} up to step {step}; it has {listed(there)}"
            )
    return step


def paired(setting: Setting, baseline: Setting) -> list[tuple[ComparedRun, ComparedRun]]:
    """Runs of two settings that saw the same batches."""
    by_batches = {run.batches: run for run in baseline.runs if run.batches}
    return [(run, by_batches[run.batches]) for run in setting.runs if run.batches in by_batches]


def difference_at(setting: Setting, baseline: Setting, metric: Metric, step: int) -> Difference:
    """Difference of a metric at its last value up to `step`: over pairs where there are some, else over all runs."""
    pairs = paired(setting, baseline)
    ours, theirs = ([*side] for side in zip(*pairs, strict=True)) if pairs else (setting.runs, baseline.runs)
    values, baseline_values = ([run.values(metric.name, step)[-1] for run in runs] for runs in (ours, theirs))
    return difference(values, baseline_values, metric.better, bool(pairs))
