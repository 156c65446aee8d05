"""Settings that a new sweep takes from earlier work, to train them first: the best of a sweep or of finished runs.

Their scores do not count here: those of another length, model or data set cannot be compared with this sweep's.
"""

import os
import sys
from collections.abc import Iterable, Mapping
from math import inf
from typing import Any, NamedTuple

from tips_ray import storage
from tips_ray.config.sweep import SweepConfig
from tuning.comparison.mlflow import URI_VARIABLE, RunValues, finished_runs, selection
from tuning.sweeps.folder import CONFIG, sweep_config
from tuning.sweeps.population import current_values
from tuning.sweeps.record import Record
from tuning.sweeps.space import Values, active_values, is_valid, lies_in, run_of, value_at
from tuning.sweeps.summary import Summary

MOST = 5
"""(D) Settings that are taken: more would leave a search too few of its own before its model begins."""


class Earlier(NamedTuple):
    """Where earlier work is."""

    place: str
    """Folder of a sweep, or name of an experiment of MLflow."""
    mlflow_uri: str | None = None
    """Of the experiment; None: MLFLOW_TRACKING_URI."""


def earlier_settings(config: SweepConfig, earlier: Earlier) -> tuple[list[Values], str]:
    """Settings of the space, the best first, and a sentence about where they come from.

    Raises:
        ValueError: there is no such sweep or experiment, or none of its settings lies in the space.
        TrackingError: MLflow does not answer.
    """
    if config.search in ("grid", "listed"):
        raise ValueError(f"--from ({earlier.place}): a sweep with search ({config.search}) has all its settings")
    folder = storage.resolved(earlier.place.removesuffix(f"/{CONFIG}"))
    if storage.exists(storage.join(folder, CONFIG)):
        if earlier.mlflow_uri:
            raise ValueError(f"--from ({earlier.place}) is the folder of a sweep: leave --mlflow-uri out")
        every, kind = _of_sweep(config, folder), "settings with scores"
    else:
        every, kind = _of_experiment(config, earlier), "finished runs"
    found = _in_space(config, every)
    if not found:
        outside = f", such as {every[0]}" if every else ""
        raise ValueError(f"--from ({earlier.place}): {len(every)} {kind}, of which none lies in the space{outside}")
    keys = ", ".join(config.space)
    return found[:MOST], f"{len(every)} {kind} of {earlier.place} give {len(found)} settings of the space ({keys})"


def _in_space(config: SweepConfig, every: Iterable[Mapping[str, Any]]) -> list[Values]:
    """Those that lie in the space, each once, with the run's value for keys that they lack."""
    base, found = run_of(config, {}), list[Values]()
    for given in every:
        whole = {key: given.get(key, value_at(base, key)) for key in config.space}
        values = active_values(config, whole)
        if values not in found and lies_in(config, values) and is_valid(config, values):
            found.append(values)
    return found


def _of_sweep(config: SweepConfig, place: str) -> list[Values]:
    """Values of all settings with scores, the best first."""
    summary = Summary(sweep_config(place), Record(place))
    scored = [one for one in summary.order() if one.last_score(summary.rungs.seeds)]
    own = {key: value_at(summary.base, key) for key in config.space}
    return [{**own, **current_values(summary.config, one.values)} for one in scored]


def _of_experiment(config: SweepConfig, earlier: Earlier) -> list[Mapping[str, Any]]:
    """Params of the finished runs that have the first score."""
    if not earlier.mlflow_uri and not os.environ.get(URI_VARIABLE):
        raise ValueError(
            f"--from ({earlier.place}) is no folder of a sweep; for an experiment of MLflow give --mlflow-uri, or set "
            f"{URI_VARIABLE}"
        )
    score = config.scores[0]
    name = score.metric or f"final/{score.name}"
    runs = finished_runs(selection("--from", earlier.place, earlier.mlflow_uri))
    scored = [run for run in runs if abs(run.metrics.get(name, inf)) < sys.float_info.max]  # a database's infinity
    if not scored:
        raise ValueError(
            f"--from ({earlier.place}): {len(runs)} finished runs, of which none has the metric {name} with a finite "
            "value"
        )
    sign = 1 if score.better == "lower" else -1

    def loss(run: RunValues) -> float:
        return sign * run.metrics[name]

    return [run.params for run in sorted(scored, key=loss)]
