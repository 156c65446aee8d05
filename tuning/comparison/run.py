"""A run that is compared: its seed, the params that decide what it computes, its batches, and its metrics by step."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf, isfinite
from typing import Any, NamedTuple

from tips_ray import storage
from tips_ray.runs import RunFolder
from tips_ray.runs.folder import deciding, require_run
from tips_ray.runs.run import Run, run_at

FACTS = ("global_batch_images", "resources.workers", "resources.min_workers", "resources.gpus_per_worker")
"""Params that say how many images a step has and how many GPUs a run holds."""
BEGINNINGS = ("start", "resume")
"""Kinds of the event with which each attempt begins."""


class Line(NamedTuple):
    """What a run has logged at a step."""

    step: int
    seconds: float
    """Since 1970."""
    attempt: int
    """Lines of one attempt were logged by processes that nothing had stopped in between."""
    workers: int | None
    """None: it is not known."""
    values: Mapping[str, float]
    """By metric."""


class Point(NamedTuple):
    """A value of a metric."""

    step: int
    amount: float
    """Steps, images or hours done by then; see `measure.measured`."""
    value: float


@dataclass(frozen=True)
class ComparedRun:
    """A run from a run folder or from MLflow."""

    uri: str
    """The run folder, or the id of the MLflow run."""
    name: str
    seed: int | str | None
    """None: it is not known."""
    params: Mapping[str, str]
    """Values as JSON, of params that decide what it computes; without its seed."""
    batches: str
    """Batch fingerprint; empty: it is not known."""
    names: Sequence[str]
    """Metrics that it has."""
    lines: Sequence[Line]
    """By step; of repeated steps the latest."""
    facts: Mapping[str, Any]
    """Those of `FACTS` that are known."""
    status: str = ""
    """By MLflow; empty: it is not known."""
    folder: str = ""
    """Its run folder; empty: it is not known."""
    amounts: Sequence[float] = ()
    """For each line the steps, images or hours done by then."""

    @property
    def label(self) -> str:
        """How a message names it."""
        return self.uri if "/" in self.uri else f"{self.name} ({self.uri})"

    def points(self, metric: str) -> list[Point]:
        """Values in the order of their steps; those that are not finite are among them."""
        rows = zip(self.lines, self.amounts, strict=True)
        return [Point(line.step, amount, line.values[metric]) for line, amount in rows if metric in line.values]

    def values(self, metric: str, until: float = inf) -> list[float]:
        """Finite values in the order of their steps, up to an amount."""
        return [one.value for one in self.points(metric) if one.amount <= until and isfinite(one.value)]

    def divergence(self, metric: str) -> Point | None:
        """The first of the values at the end that are not finite; None: the last value is finite."""
        found = None
        for point in reversed(self.points(metric)):
            if isfinite(point.value):
                break
            found = point
        return found


def run_of_folder(uri: str) -> ComparedRun:
    """
    Raises:
        ValueError: it is no run folder.
    """
    require_run(uri := storage.resolved(uri))
    run, folder = run_at(uri), RunFolder(uri)
    config = run.config.model_dump(mode="json")
    params = deciding(config)
    del params["name"], params["seed"]
    params["data"] = run.data_fingerprint[:12]
    resources = {f"resources.{key}": value for key, value in config["resources"].items()}
    facts = {key: value for key, value in {**config, **resources}.items() if key in FACTS}
    lines = _with_attempts(folder.read_metrics(), folder.read_events())
    names = sorted({name for line in lines for name in line.values})
    return ComparedRun(uri, run.config.name, run.config.seed, params, _batches(run), names, lines, facts, folder=uri)


def _with_attempts(lines: Sequence[Mapping[str, Any]], events: Sequence[Mapping[str, Any]]) -> list[Line]:
    """Lines with their attempt, which is the latest that had begun, and its number of workers."""
    begun = [event for event in events if event["kind"] in BEGINNINGS]
    times = [event["time"] for event in begun]
    found = []
    for line in lines:
        attempt = bisect_right(times, line["time"])
        workers = begun[attempt - 1].get("workers") if attempt else None
        values = {name: value for name, value in line.items() if name not in ("step", "time")}
        seconds = datetime.fromisoformat(line["time"]).timestamp()
        found.append(Line(line["step"], seconds, attempt, workers, values))
    return found


def _batches(run: Run) -> str:
    """Its batch fingerprint; empty where the run has not stored its vocabulary or its data yet."""
    try:
        return run.batch_fingerprint() if run.data_fingerprint else ""
    except storage.NotFoundError:
        return ""
