"""An ablation: a sweep over its listed rows, scored by all tasks of its suite, and a table of the scores."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tips_ray.config.ablation import AblationConfig
from tips_ray.config.load import override
from tips_ray.config.run import RunConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.errors import Faults, RunFailedError
from tuning.ablations.table import RowRun, written_table
from tuning.sweeps.queue import Sweep
from tuning.sweeps.record import Setting
from tuning.sweeps.run import Execute, run_sweep
from tuning.sweeps.space import value_at
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
        ValueError: `base` is wrong, `out` holds an ablation with another config, or a metric names a missing score.
        RunFailedError: a row has no scores.
        RunStopped: it was asked to stop.
    """
    sweep = run_sweep(sweep_of(config, out), execute, tell)
    return written_table(config, [one for row in config.rows for one in _row_runs(sweep, row)], out)


def sweep_of(config: AblationConfig, out: Path) -> SweepConfig:
    """The sweep of an ablation in a folder: every row to the end.

    Raises:
        Faults: the rows give no valid sweep.
    """
    score = next(iter(config.metrics.values()))  # the sweep's own; the table has those of all metrics
    tree = {
        "name": out.name,
        "storage": str(out.parent),
        "run": config.base,
        "scenes": config.scenes,
        "listed": _listed(config),
        "scheduler": "none",
        "replicas": config.replicas,
        "at_a_time": config.at_a_time,
        "scores": [{"task": score.task, "score": score.score, "better": score.better}],
        "suite": config.suite.model_dump(mode="json"),
    }
    return override(SweepConfig, tree, {})


def _listed(config: AblationConfig) -> dict[str, dict[str, Any]]:
    """All rows with values for the keys of each, the last row first: it has the most expensive steps."""
    keys = {key: None for row in config.rows.values() for key in row.set} or {ALWAYS: None}
    runs = {name: _run(config, f"rows.{name}.set", config.rows[name].set) for name in reversed(config.rows)}
    return {name: {key: value_at(run, key) for key in keys} for name, run in runs.items()}


def _run(config: AblationConfig, place: str, values: Mapping[str, Any]) -> RunConfig:
    own = {"name": "row", "data.sources": [{"uri": "scenes"}]}
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
    setting = next((one for one in sweep.settings if one.values == values), None)
    return [_row_run(sweep, row, setting, seed) for seed in sweep.rungs.seeds]


def _row_run(sweep: Sweep, row: str, setting: Setting | None, seed: int) -> RowRun:
    (step,) = sweep.rungs.steps
    if setting is None or step not in setting.trial(seed).scores:
        why = Summary(sweep.config, sweep.record).state(setting) if setting else "it was not trained"
        raise RunFailedError(f"row {row} has no scores: {why}; see {sweep.places.uri}/logs")
    job = sweep.job(setting, seed, step)
    return RowRun(row, seed, job.run, Path(job.results_uri))
