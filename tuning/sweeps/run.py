"""Runs a sweep: checks, the lease and config of its folder, what all trials share, then its jobs."""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import partial
from pathlib import Path

import yaml

from tips_ray import storage
from tips_ray.config.run import RunConfig
from tips_ray.config.score import ScoreConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.errors import Faults, RunStopped, listed
from tips_ray.launch.beside import beside
from tips_ray.launch.checks import require_data_of_tasks, require_writable
from tips_ray.launch.stops import LOOK_SECONDS
from tips_ray.runs.folder import deciding
from tips_ray.runs.metric_names import LOGGED_METRICS
from tips_ray.runs.mlflow_ends import tell_ends
from tips_ray.runs.mlflow_follower import Status
from tips_ray.runs.status import statuses_below
from tips_ray.runs.stop import stop_asked
from tips_ray.runs.tracking import Tracking
from tips_ray.words import table
from tuning.sweeps.earlier import Earlier, earlier_settings
from tuning.sweeps.folder import CONFIG, kept_lease, sweep_config, sweep_uri
from tuning.sweeps.forecast import forecast
from tuning.sweeps.page import page
from tuning.sweeps.pictures import Picture, pictures
from tuning.sweeps.queue import Sweep
from tuning.sweeps.record import Record, Setting
from tuning.sweeps.search import write_study
from tuning.sweeps.shared import prepared, require_same_captions
from tuning.sweeps.space import name_in_list, require_valid, run_of
from tuning.sweeps.summary import Summary, seconds_per_step
from tuning.sweeps.tracking import BestEffort, end_lost, log_scores, settings_csv, show, start_parent
from tuning.sweeps.trial import Job, Outcome

STUDY = "optuna.log"
FIXED = ("scores", "suite", "rungs")
"""Keys of a sweep that all its scores depend on, beside its run: they may not change."""
Execute = Callable[[Sweep], None]


def run_sweep(
    config: SweepConfig, execute: Execute, tell: Callable[[str], None] = print, earlier: Earlier | None = None
) -> Sweep:
    """Run the sweep, or go on with it, or extend it, until nothing is left to do.

    Args:
        config: of the sweep; the same name again goes on.
        execute: `run_on_tune` or `run_here`.
        tell: gets a line about each step of the work.
        earlier: whose best settings are trained first.

    Returns:
        The sweep, at its end.

    Raises:
        ValueError: the config is wrong, or another driver works on the sweep.
        RunFailedError: all settings fail.
        RunStopped: it was asked to stop.
    """
    base = checked(config)
    suggested, told = earlier_settings(config, earlier) if earlier else ([], "")
    uri = sweep_uri(config)
    storage.mark_output(uri)
    with kept_lease(uri) as generation:
        require_unchanged(config, uri)
        if earlier:
            Record(uri).add_earlier(suggested)
            tell(f"earlier    {told}; the best {len(suggested)} come before those of the search")
        return _run(config, base, uri, execute, generation, tell)


def checked(config: SweepConfig) -> RunConfig:
    """The run that all settings start from, once everything was checked that can be known before the first trial.

    Raises:
        ValueError: the config is wrong; each mistake is named.
    """
    base = require_valid(config)
    require_same_captions(config, base)
    require_writable("storage", config.storage)
    require_logged({f"scores.{number}": score for number, score in enumerate(config.scores)})
    if config.suite:
        require_data_of_tasks("suite", config.suite, {score.task for score in config.scores if score.task})
    return base


def require_logged(scores: Mapping[str, ScoreConfig]) -> None:
    """
    Args:
        scores: by their places in the config.

    Raises:
        Faults: no run logs the metric of a score.
    """
    if faults := list(filter(None, (_unknown(place, score) for place, score in scores.items()))):
        raise Faults(faults)


def _unknown(place: str, score: ScoreConfig) -> str:
    """The mistake of a score that no run logs; empty: it is none."""
    if score.metric is None or score.metric in LOGGED_METRICS:
        return ""
    near = get_close_matches(score.metric, LOGGED_METRICS, n=1)
    meant = f"did you mean {near[0]}?" if near else f"it logs {listed(LOGGED_METRICS)}"
    return f"{place}.metric ({score.metric}) is logged by no run; {meant}"


def _run(
    config: SweepConfig, base: RunConfig, uri: str, execute: Execute, generation: int, tell: Callable[[str], None]
) -> Sweep:
    for line in tell_ends(statuses_below(storage.join(uri, "runs"))):
        tell(line)
    parent = start_parent(config, base, uri)
    tracked = BestEffort(parent, tell)
    with _finished(parent):
        places, base = prepared(config, base, uri, parent, tell)
        tell(_claim(config, uri))
        sweep = Sweep(config, base, places, Record(uri))

        def told(job: Job, outcome: Outcome) -> None:
            tell(_ended(sweep, job, outcome))
            tracked(lambda: log_scores(parent, config, job, outcome))

        sweep.told = told
        sweep.record.start()
        tell(forecast(config, base, seconds_per_step(Summary(config, sweep.record))))
        try:
            _execute(sweep, execute, generation)
        finally:
            for job in sweep.running.values():
                tracked(partial(end_lost, parent, job))
            _show_results(sweep, parent, tracked, tell)
        if sweep.failure:
            raise sweep.failure
    if sweep.stops_because:
        tell(f"budget     {sweep.stops_because}")
    return sweep


@contextmanager
def _finished(parent: Tracking) -> Iterator[None]:
    """Tell MLflow how the block ended."""
    status: Status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except (RunStopped, KeyboardInterrupt):
        status = "SCHEDULED"  # to go on later
        raise
    finally:
        parent.finish(status)


def _show_results(sweep: Sweep, parent: Tracking, tracked: BestEffort, tell: Callable[[str], None]) -> None:
    """Best effort: the record has it all, and how the sweep ended matters more."""
    try:
        drawn = write_results(sweep)
    except storage.StorageError as error:
        tell(f"results    page and table were not written: {error}")
        return
    tracked(lambda: show(parent, Summary(sweep.config, sweep.record), sweep.places.runs, drawn))


def told_results(uri: str) -> Iterator[str]:
    """Lines about the result of a sweep, and what to do next."""
    summary = Summary(sweep_config(uri), Record(uri))
    yield table(summary.heads(), summary.rows())
    yield from summary.sentences()
    yield f"page: {storage.join(uri, 'sweep.html')}"
    if storage.is_local(uri):
        yield f"dashboard: pip install optuna-dashboard; optuna-dashboard {storage.join(uri, STUDY)}"
    if summary.winner():
        best = storage.join(uri, "best.yaml")
        is_here = storage.is_local(uri)
        yield f"next: tips-ray pretrain {best if is_here else f'FILE, with a copy of {best} as FILE'}"


def write_results(sweep: Sweep) -> Sequence[Picture]:
    """Write page, table and best config into the sweep's folder; returns the pictures."""
    summary, uri = Summary(sweep.config, sweep.record), sweep.places.uri
    drawn = pictures(summary, sweep.places.runs)
    storage.write_text(storage.join(uri, "sweep.html"), page(summary, drawn))
    storage.write_text(storage.join(uri, "settings.csv"), settings_csv(summary))
    if best := summary.best_config():
        storage.write_text(storage.join(uri, "best.yaml"), best)
    if storage.is_local(uri):
        write_study(sweep.config, sweep.rungs, summary.settings, Path(uri) / STUDY)
    return drawn


def _ended(sweep: Sweep, job: Job, outcome: Outcome) -> str:
    """A line about a job that has ended."""
    row = name_in_list(sweep.config, sweep.record.settings[job.setting].values)
    name = f"{job.run.name}{f' ({row})' if row else ''} step {job.step}: "
    if outcome.kind == "stopped":
        return name + outcome.why
    if outcome.kind != "scored":
        return f"{name}{outcome.kind}: {outcome.why}"
    scores = ", ".join(f"{one.name} {value:.4g}" for one, value in zip(job.scores, outcome.scores, strict=True))
    ranked = [one.number for one in sweep.rungs.ranked(sweep.settings, job.step)]
    place = f", place {ranked.index(job.setting) + 1} of {len(ranked)}" if job.setting in ranked else ""
    return f"{name}{scores}{place}, {outcome.seconds:.0f} s"


def require_unchanged(config: SweepConfig, uri: str) -> None:
    """
    Raises:
        Faults: the sweep has scores, which mean nothing under a change of its config.
    """
    settings = [one for one in Record(uri).settings.values() if any(trial.scores for trial in one.trials.values())]
    if settings and (changes := _changes(sweep_config(uri), config, settings)):
        cure = f"{uri} has scores that depend on it: give it its old value, or the sweep another name"
        raise Faults([f"{change}; {cure}" for change in changes])


def _claim(config: SweepConfig, uri: str) -> str:
    """Write the config; returns a line that says whether the sweep is new, goes on or is extended."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    if storage.create_text(storage.join(uri, CONFIG), text):
        return f"sweep      {config.name} is new: {uri}"
    is_extended = sweep_config(uri) != config
    if is_extended:
        storage.write_text(storage.join(uri, CONFIG), text)
    return f"sweep      {config.name} {'is extended' if is_extended else 'goes on'}: {uri}"


def _changes(there: SweepConfig, given: SweepConfig, settings: Sequence[Setting]) -> list[str]:
    """Changes that are refused: of scores, rungs, and of the run but for keys that every scored setting gives."""
    before, after = (deciding(run_of(one, {}).model_dump(mode="json")) for one in (there, given))
    free = {key for key in there.space if all(key in one.values for one in settings)}
    keys = sorted(key for key in before.keys() | after.keys() if before.get(key) != after.get(key) and key not in free)
    told = [f"run.{key}: {before.get(key, 'absent')} -> {after.get(key, 'absent')}" for key in keys]
    fixed = [key for key in FIXED if getattr(there, key) != getattr(given, key)]
    return told + [f"{key} differs from that of {CONFIG}" for key in fixed]


def _execute(sweep: Sweep, execute: Execute, generation: int) -> None:
    """
    Raises:
        RunStopped: the sweep was asked to stop.
    """
    with beside(partial(_watch_requests, sweep, generation), "stop"):
        try:
            execute(sweep)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("interrupted; the same command goes on with the sweep") from None
    if sweep.is_asked_to_stop:
        raise RunStopped(f"{sweep.stops_because}; running trials are saved, the same command goes on with the sweep")


def _watch_requests(sweep: Sweep, generation: int, is_over: threading.Event) -> None:
    """Stop the sweep when its folder holds a request."""
    while not is_over.wait(LOOK_SECONDS):
        if sweep.is_asked_to_stop:
            sweep.ask_to_leave()
        elif request := stop_asked(sweep.places.uri, generation):
            sweep.stop(str(request))
