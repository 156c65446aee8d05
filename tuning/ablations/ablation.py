"""An ablation: a sweep over its listed rows, scored by all tasks of its suite, and a table of the scores."""

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tips_ray import storage
from tips_ray.config.ablation import AblationConfig, MetricConfig
from tips_ray.config.load import override
from tips_ray.config.run import RunConfig
from tips_ray.config.score import ScoreConfig
from tips_ray.config.sweep import NAME, SweepConfig
from tips_ray.errors import Faults, RunFailedError
from tips_ray.launch.checks import require_data_of_tasks
from tuning.ablations.table import RowRun, written_table
from tuning.sweeps.folder import sweep_config
from tuning.sweeps.queue import Sweep
from tuning.sweeps.record import Setting
from tuning.sweeps.run import Execute, require_logged, run_sweep
from tuning.sweeps.space import are_equal, value_at
from tuning.sweeps.summary import Summary

ALWAYS = "objective.alpha"
"""Key of the list where no row sets any."""


def run_ablation(config: AblationConfig, out: Path, execute: Execute, tell: Callable[[str], None] = print) -> str:
    """Run what is missing, then write `table.md` and `results.json` below `out`; return the table.

    Args:
        config: config of the ablation.
        out: folder of the sweep that trains and scores the rows.
        execute: `run_on_tune` or `run_here`.
        tell: gets a line about each step of the work.

    Raises:
        ValueError: `base` is wrong, a metric's data are not there, `out` holds an ablation with another config, or a
            metric names a missing score.
        RunFailedError: a row has no scores; the table of the others is written.
        RunStopped: it was asked to stop.
    """
    metrics = config.metrics
    require_logged({f"metrics.{name}": metric for name, metric in metrics.items()})
    require_data_of_tasks("suite", config.suite, {metric.task for metric in metrics.values() if metric.task})
    with _keys_of_ablation():
        sweep = run_sweep(sweep_of(config, out), execute, tell)
    runs, failed = list[RowRun](), list[str]()
    for row in config.wanted_rows:
        try:
            runs += _row_runs(sweep, row)
        except RunFailedError as error:
            failed.append(str(error))
    text = written_table(_of_rows(config, {one.row for one in runs}), runs, out) if runs else ""
    if failed:
        tell(text)
        raise RunFailedError("; ".join(failed))
    return text


def _of_rows(config: AblationConfig, rows: Collection[str]) -> AblationConfig:
    """The ablation of these rows alone."""
    kept = {row: one for row, one in config.rows.items() if row in rows}
    directions = tuple(one for one in config.directions if one.row in rows and one.over in rows)
    return config.model_copy(update={"rows": kept, "directions": directions})


@contextmanager
def _keys_of_ablation() -> Iterator[None]:
    """Messages about the sweep's keys name those of the ablation's file."""
    try:
        yield
    except Faults as error:
        raise Faults([f"base.{one.removeprefix('run.')}" if one.startswith("run.") else one for one in error.sentences]
                     ) from None  # fmt: skip


def sweep_of(config: AblationConfig, out: Path) -> SweepConfig:
    """The sweep of an ablation in a folder: every row to the end.

    Raises:
        Faults: the rows give no valid sweep.
    """
    if not re.fullmatch(NAME, out.name):
        raise ValueError(f"--output ({out}): the last part must begin with a letter or digit and hold no others than "
                         "these and . _ -")  # fmt: skip
    score = _score(config, out)
    tree = {
        "name": out.name,
        "storage": str(out.parent),
        "run": config.base,
        "scenes": config.scenes,
        "listed": _listed(config),
        "scheduler": "none",
        "replicas": config.replicas,
        "at_a_time": config.at_a_time,
        "scores": [score.model_dump(include=set(ScoreConfig.model_fields))],
        "suite": config.suite.model_dump(mode="json"),
    }
    return override(SweepConfig, tree, {})


def _score(config: AblationConfig, out: Path) -> MetricConfig:
    """What the sweep itself compares rows by; the table has the scores of all metrics.

    It stays what it was when the sweep began, as long as it is one of the metrics. It is of a task: rows need not log
    the same metrics.
    """
    metrics = [metric for metric in config.metrics.values() if metric.task]
    try:
        known = {score.name for score in sweep_config(storage.resolved(str(out))).scores}
    except ValueError:  # the ablation is new
        known = set()
    return next((metric for metric in metrics if metric.name in known), metrics[0])


def _listed(config: AblationConfig) -> dict[str, dict[str, Any]]:
    """The wanted rows with values for the keys of all, the last row first: it has the most expensive steps."""
    keys = {key: None for row in config.rows.values() for key in row.set} or {ALWAYS: None}
    wanted = reversed(config.wanted_rows)
    runs = {name: _run(config, f"rows.{name}.set", config.rows[name].set) for name in wanted}
    listed = {name: {key: value_at(run, key) for key in keys} for name, run in runs.items()}
    names = list(listed)
    for place, name in enumerate(names):
        if equal := next((other for other in names[:place] if listed[other] == listed[name]), None):
            raise ValueError(f"rows.{name}.set and rows.{equal}.set give the same run: leave one of the rows out")
    return listed


def _run(config: AblationConfig, place: str, values: Mapping[str, Any]) -> RunConfig:
    own = {"name": "row", **({"data.sources": [{"uri": "scenes"}]} if config.scenes else {})}
    try:
        base = override(RunConfig, config.base, own)
    except Faults as error:
        raise Faults([f"base.{sentence}" for sentence in error.sentences]) from None
    try:
        return override(RunConfig, base.model_dump(mode="json"), values)
    except Faults as error:
        raise Faults([f"{place}: {sentence}" for sentence in error.sentences]) from None


def _row_runs(sweep: Sweep, row: str) -> list[RowRun]:
    """The runs of a row, one for each seed.

    Raises:
        RunFailedError: one has no scores.
    """
    values = sweep.config.listed[row]
    setting = next((one for one in sweep.settings if are_equal(sweep.config, one.values, values)), None)
    return [_row_run(sweep, row, setting, seed) for seed in sweep.rungs.seeds]


def _row_run(sweep: Sweep, row: str, setting: Setting | None, seed: int) -> RowRun:
    (step,) = sweep.rungs.steps
    if setting is None or None in setting.trial(seed).scores.get(step, (None,)):
        why = Summary(sweep.config, sweep.record).state(setting) if setting else "it was not trained"
        raise RunFailedError(f"row {row} has no scores: {why}; see {sweep.places.uri}/logs")
    job = sweep.job(setting, seed, step)
    return RowRun(row, seed, job.run, Path(job.results_uri))
