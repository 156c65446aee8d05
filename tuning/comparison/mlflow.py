"""Runs from MLflow, those of tips_ray and of other tools: an experiment, or the runs with a tag `sweep`."""

import ast
import json
import os
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from math import inf, isfinite
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from tips_ray.errors import listed
from tips_ray.runs.folder import deciding
from tips_ray.runs.mlflow_access import database_path, mlflow_client, mlflow_failures, without_credentials
from tips_ray.runs.mlflow_checks import require_active, require_answer
from tuning.comparison.run import FACTS, ComparedRun, Line

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric as Logged
    from mlflow.entities import Run

URI_VARIABLE = "MLFLOW_TRACKING_URI"
SEEDS = ("seed", "random_seed")
WORKERS, MIN_WORKERS = "resources.workers", "resources.min_workers"
CHANGED = "changed."
"""Begins the tags of params that a resume changed."""
PAUSE_PACES, PAUSE_SECONDS = 20, 60
"""(D) Time between two lines is a pause if a step took so many times the median, and it was longer than this."""


class Selection(NamedTuple):
    """Which runs of MLflow are compared."""

    option: str
    """`--experiment`, `--sweep`, or `--from`, which means an experiment."""
    name: str
    uri: str
    key: str
    """Option or variable that holds the URI."""

    def __str__(self) -> str:
        return f"{self.option} ({self.name})"


class RunValues(NamedTuple):
    """What a run of MLflow was given, and what it has at its end."""

    params: Mapping[str, Any]
    metrics: Mapping[str, float]


class Found(NamedTuple):
    """Runs of MLflow, and sentences about those that are left out."""

    runs: list[ComparedRun]
    left_out: list[str]


def selection(option: str, name: str, uri: str | None) -> Selection:
    """
    Raises:
        ValueError: nothing says where MLflow is.
    """
    given = uri or os.environ.get(URI_VARIABLE)
    if not given:
        raise ValueError(
            f"{option} ({name}): give --mlflow-uri, or set {URI_VARIABLE}, to say where MLflow is: sqlite:///FILE or "
            "http://HOST"
        )
    return Selection(option, name, given, "--mlflow-uri" if uri else URI_VARIABLE)


def runs_of_mlflow(
    chosen: Selection, metrics: Sequence[str], leave_out: Sequence[str] = (), known: Sequence[str] = ()
) -> Found:
    """Runs in the order of their starts.

    Args:
        chosen: which.
        metrics: that are compared; runs without one of them are left out.
        leave_out: names or ids of runs that are not wanted.
        known: ids of runs whose run folders are compared already.

    Raises:
        TrackingError: MLflow does not answer.
        ValueError: there is no such experiment or sweep, or fewer than two runs have the metrics.
    """
    with _answering(chosen) as client:
        every = list(_selected(client, chosen))
        runs = _wanted(chosen, every, leave_out, known)
        parents = {run.data.tags.get("mlflow.parentRunId") for run in every}
        kept = [run for run in runs if not _is_parent(run, parents)]
        having = [run for run in kept if all(name in run.data.metrics for name in metrics)]
        _require_two(chosen, kept, having, metrics, len(known))
        found = [_compared(client, run, metrics) for run in having]
    left_out = [_lacking(run, metrics) for run in kept if run not in having]
    counts = {"parent runs without metrics": len(runs) - len(kept)}
    counts["runs that --leave-out names, or whose folder is given"] = len(every) - len(runs)
    return Found(found, [*left_out, *(f"{what}: {count}" for what, count in counts.items() if count)])


def finished_runs(chosen: Selection) -> list[RunValues]:
    """Finished runs of an experiment with their params and the last value of each metric.

    Raises:
        TrackingError: MLflow does not answer.
        ValueError: there is no such experiment.
    """
    with _answering(chosen) as client:
        runs = [run for run in _selected(client, chosen) if run.info.status == "FINISHED"]
        return [RunValues(_params(run), run.data.metrics) for run in runs if "sweep_folder" not in run.data.tags]


@contextmanager
def _answering(chosen: Selection) -> Iterator["MlflowClient"]:
    """
    Raises:
        TrackingError: MLflow does not answer, now or during the block.
        ValueError: there is no such database.
    """
    path = database_path(chosen.uri)
    if path and not path.exists():
        raise ValueError(f"{chosen.key} ({chosen.uri}): there is no such file; give the database that has the runs")
    require_answer(chosen.uri, chosen.key)
    with mlflow_failures(chosen.uri, chosen.key):
        yield mlflow_client(chosen.uri)


def _is_parent(run: "Run", parents: set[str | None]) -> bool:
    """A run that stands for others: of a sweep, or one with nested runs and no metrics of its own."""
    return "sweep_folder" in run.data.tags or (run.info.run_id in parents and not run.data.metrics)


def _wanted(chosen: Selection, runs: Sequence["Run"], leave_out: Sequence[str], known: Sequence[str]) -> list["Run"]:
    """
    Raises:
        ValueError: a run that is to be left out is not there.
    """
    names = {name for run in runs for name in (run.info.run_name, run.info.run_id)}
    for name in leave_out:
        if name not in names:
            raise ValueError(f"--leave-out ({name}) is no run of {chosen}: give the name or the id of one")
    unwanted = {*leave_out, *known}
    return [run for run in runs if not {run.info.run_name, run.info.run_id} & unwanted]


def _selected(client: "MlflowClient", chosen: Selection) -> Iterator["Run"]:
    place = without_credentials(chosen.uri)
    experiments = list(_pages(client.search_experiments))
    if chosen.option != "--sweep":
        experiment = client.get_experiment_by_name(chosen.name)
        if experiment is None:
            names = listed(sorted(one.name for one in experiments))
            raise ValueError(f"{chosen} does not exist at {place}; give one of: {names}")
        require_active(chosen.name, experiment.experiment_id, experiment.lifecycle_stage, chosen.uri, chosen.option)
        experiments = [experiment]
    ids = [one.experiment_id for one in experiments]
    runs = list(_pages(client.search_runs, ids, order_by=["attributes.start_time ASC"]))
    if chosen.option == "--sweep":
        sweeps = sorted({run.data.tags["sweep"] for run in runs if "sweep" in run.data.tags})
        runs = [run for run in runs if run.data.tags.get("sweep") == chosen.name]
        if not runs:
            raise ValueError(
                f"{chosen} is the tag `sweep` of no run at {place}; give one of: {listed(sweeps) or 'none'}"
            )
    yield from runs


def _pages(search: Callable[..., Any], *arguments: Any, **named: Any) -> Iterator[Any]:
    token = None
    while True:
        page = search(*arguments, **named, page_token=token)
        yield from page
        token = page.token
        if not token:
            return


def _require_two(
    chosen: Selection, runs: Sequence["Run"], having: Sequence["Run"], metrics: Sequence[str], folders: int
) -> None:
    """
    Raises:
        ValueError: there are fewer than two runs, or fewer have the metrics; it names the metrics that there are.
    """
    place = without_credentials(chosen.uri)
    if len(runs) + folders < 2:
        raise ValueError(f"{chosen} has {'one run' if runs else 'no run'} at {place}: a comparison needs two")
    if len(having) + folders >= 2:
        return
    counts = Counter(name for run in runs for name in run.data.metrics)
    there = [f"{name} ({count})" for name, count in counts.most_common()]
    raise ValueError(
        f"--metric ({', '.join(metrics)}): {len(having)} of {len(runs)} runs of {chosen} have "
        f"{'it' if len(metrics) == 1 else 'all of them'}, and a comparison needs two; give one of these (runs that "
        f"have it): {listed(there) or 'none'}"
    )


def _lacking(run: "Run", metrics: Sequence[str]) -> str:
    lacks = [name for name in metrics if name not in run.data.metrics]
    return f"{run.info.run_name} ({run.info.run_id}) has no {', '.join(lacks)}"


def _compared(client: "MlflowClient", run: "Run", metrics: Sequence[str]) -> ComparedRun:
    tags, params = run.data.tags, _params(run)
    is_ours = "run_folder" in tags or FACTS[0] in params
    histories = {name: _history(client.get_metric_history(run.info.run_id, name), is_ours) for name in metrics}
    seed = _seed_key(params)
    decide = deciding(params) if is_ours else {key: json.dumps(value, default=str) for key, value in params.items()}
    if is_ours:
        decide.pop("name", None)
    decide.pop(seed or "", None)
    inputs = run.inputs.dataset_inputs if run.inputs else []
    digests = sorted({one.dataset.digest[:12] for one in inputs if one.dataset.digest})
    data = {"data": ", ".join(digests)} if digests else {}
    return ComparedRun(
        uri=run.info.run_id,
        name=run.info.run_name or run.info.run_id,
        seed=_seed(params[seed]) if seed else None,
        params={**decide, **data},
        batches=tags.get("batch_fingerprint", ""),
        names=sorted(run.data.metrics),
        lines=_lines(histories),
        facts=_facts(run, params),
        status=run.info.status,
        folder=tags.get("run_folder", ""),
    )


def _facts(run: "Run", params: Mapping[str, Any]) -> dict[str, Any]:
    """Params of `FACTS`. Of a run whose workers have changed, such as a trial that grew, the fewest and the most."""
    facts = {key: params[key] for key in FACTS if params.get(key) is not None}
    if f"{CHANGED}{WORKERS}" in run.data.tags and MIN_WORKERS in facts:
        first = _value(run.data.params.get(WORKERS, "1"))
        facts[MIN_WORKERS] = min(first, facts[WORKERS], facts[MIN_WORKERS])
        facts[WORKERS] = max(first, facts[WORKERS])
    return facts


def _seed_key(params: Mapping[str, Any]) -> str | None:
    """`seed`, `random_seed`, or the only param that ends with `.seed`."""
    below = [key for key in params if key.endswith(".seed")]
    return next((key for key in SEEDS if key in params), below[0] if len(below) == 1 else None)


def _seed(value: Any) -> int | str | None:
    return value if value is None or type(value) is int else str(value)


def _params(run: "Run") -> dict[str, Any]:
    """Params with the values that a resume has changed."""
    tags = run.data.tags
    changed = {key.removeprefix(CHANGED): value for key, value in tags.items() if key.startswith(CHANGED)}
    return _parsed({**run.data.params, **changed})


def _parsed(params: Mapping[str, str]) -> dict[str, Any]:
    """Params as the values whose text MLflow keeps: numbers, lists, None; all else is text."""
    with warnings.catch_warnings(action="ignore"):  # of texts that look like odd code
        return {key: _value(text) for key, text in params.items()}


def _value(text: str) -> Any:
    try:
        return json.loads(json.dumps(ast.literal_eval(text), allow_nan=False))
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return text


def _history(points: Sequence["Logged"], is_ours: bool) -> dict[int, tuple[int, float, float]]:
    """Step -> attempt, seconds, value; of repeated steps the latest.

    A step that comes again after later ones shows that a run of ours was restored before it: what it had logged beyond
    no longer counts. Other tools may log their steps in any order.
    """
    found: dict[int, tuple[int, float, float]] = {}
    attempt, newest = 0, -inf
    for point in sorted(points, key=lambda one: (one.timestamp, one.step)):
        if point.step <= newest:
            attempt += 1
            if is_ours:
                found = {step: one for step, one in found.items() if step < point.step}
        newest = point.step
        is_finite = isfinite(point.value) and abs(point.value) < sys.float_info.max  # a database keeps infinity as this
        found[point.step] = (attempt, point.timestamp / 1000, point.value if is_finite else float("nan"))
    return dict(sorted(found.items()))


def _lines(histories: Mapping[str, Mapping[int, tuple[int, float, float]]]) -> list[Line]:
    """The metrics by step, and the attempts: a pause, too, ends one."""
    lines = []
    for step in sorted({step for history in histories.values() for step in history}):
        there = {name: history[step] for name, history in histories.items() if step in history}
        attempt, seconds = max((attempt, seconds) for attempt, seconds, _ in there.values())
        lines.append(Line(step, seconds, attempt, None, {name: value for name, (*_, value) in there.items()}))
    paces = [(after.seconds - before.seconds) / (after.step - before.step) for before, after in pairwise(lines)]
    slow = PAUSE_PACES * median(paces) if paces else inf
    pauses, found = 0, lines[:1]
    for (before, after), pace in zip(pairwise(lines), paces, strict=True):
        pauses += pace > slow and after.seconds - before.seconds > PAUSE_SECONDS
        found.append(after._replace(attempt=after.attempt + pauses))
    return found
