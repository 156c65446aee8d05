"""MLflow's view of a sweep: a parent run with a table, pictures and the best config; its trials are nested runs.

All of it is derived from the record and is written again at every end of the sweep. A failure is told once, and never
stops the sweep.
"""

import csv
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from tips_ray import storage
from tips_ray.config.load import override
from tips_ray.config.run import RunConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.runs.mlflow_access import TrackingError, mlflow_client, mlflow_failures, one_line
from tips_ray.runs.mlflow_note import stored_run_id
from tips_ray.runs.mlflow_runs import KEY, tracking_uri
from tips_ray.runs.tracking import Tracking, tracked_folder
from tuning.sweeps.pictures import Picture
from tuning.sweeps.queue import trial_name
from tuning.sweeps.summary import Summary, markdown
from tuning.sweeps.trial import Job, Outcome

TAG = "sweep_folder"
DESCRIBED = ("settings", "search", "scheduler", "rungs", "until", "keep", "replicas", "budget", "seed")
NOTE = "mlflow.note.content"
MOST_CHARACTERS = 60_000
"""Longest description that MLflow shows in a page."""


def start_parent(config: SweepConfig, base: RunConfig, uri: str) -> Tracking:
    """The parent run of the sweep in a folder, with its space as params; without MLflow one that does nothing.

    A sweep that MLflow knows goes on while MLflow is away.

    Raises:
        TrackingError: MLflow cannot take a new run.
    """
    place = tracking_uri(override(RunConfig, base.model_dump(mode="json"), {"storage": config.storage}))
    if place is None:
        return Tracking(None)
    tags = {"sweep": config.name}
    try:
        parent = tracked_folder(place, KEY, base.tracking.experiment, uri, TAG, config.name, tags)
    except TrackingError:
        if not (run_id := stored_run_id(uri)):
            raise
        return Tracking(place, run_id)
    with mlflow_failures(place, KEY):
        client = mlflow_client(place)
        known = client.get_run(parent.run_id).data.params
        described = {f"space.{key}": _domain(config, key) for key in config.space}
        described |= {key: str(getattr(config, key)) for key in DESCRIBED}
        described["scores"] = ", ".join(f"{score.name} ({score.better} is better)" for score in config.scores)
        for key, value in described.items():
            if known.get(key, value) == value:
                client.log_param(parent.run_id, key, value)
            else:
                client.set_tag(parent.run_id, f"changed.{key}", value)  # an extended sweep; a param never changes
    return parent


def _domain(config: SweepConfig, key: str) -> str:
    return str(config.space[key].model_dump(exclude_none=True))


def log_scores(parent: Tracking, config: SweepConfig, job: Job, outcome: Outcome) -> None:
    """Add `final/NAME` and `best/NAME` of a trial that has reached a rung to its own run."""
    run_id = stored_run_id(job.run_uri) if parent.uri else None
    if not run_id or outcome.kind != "scored":
        return
    client = mlflow_client(parent.uri)
    for score, value in zip(config.scores, outcome.scores, strict=True):
        client.log_metric(run_id, f"final/{score.name}", value, step=job.step)
        known = client.get_run(run_id).data.metrics.get(f"best/{score.name}", value)
        better = max if score.better == "higher" else min
        client.log_metric(run_id, f"best/{score.name}", better(known, value), step=job.step)


def show(parent: Tracking, summary: Summary, runs_uri: str, drawn: Sequence[Picture]) -> None:
    """Write the sweep's results to its MLflow run."""
    client = mlflow_client(parent.uri)
    client.set_tag(parent.run_id, NOTE, description(summary, parent, runs_uri)[:MOST_CHARACTERS])
    client.log_text(parent.run_id, settings_csv(summary), "settings.csv")
    if best := summary.best_config():
        client.log_text(parent.run_id, best, "best.yaml")
    with tempfile.TemporaryDirectory() as folder:
        for name, png in drawn:
            Path(folder, name).write_bytes(png)
        client.log_artifacts(parent.run_id, folder, "pictures")
    for score, value in _of_winner(summary):
        client.log_metric(parent.run_id, f"best/{score}", value)


def _of_winner(summary: Summary) -> list[tuple[str, float]]:
    if not (found := summary.winner()):
        return []
    scores = found[0].score(found[1], summary.rungs.seeds) or ()
    return [(score.name, value) for score, value in zip(summary.config.scores, scores, strict=True)]


def description(summary: Summary, parent: Tracking, runs_uri: str) -> str:
    """Markdown: the result in words, and the table of settings with links to their runs."""
    heads, rows = summary.heads(), summary.rows()
    for row, setting in zip(rows, summary.order(), strict=True):
        links = [_link(parent, runs_uri, setting.number, seed) for seed in summary.rungs.seeds]
        row[0] = f"{row[0]} {' '.join(filter(None, links))}"
    told = "\n".join(f"- {sentence}" for sentence in summary.sentences())
    return f"{told}\n\n{markdown(heads, rows)}\n"


def _link(parent: Tracking, runs_uri: str, setting: int, seed: int) -> str:
    run_id = stored_run_id(storage.join(runs_uri, trial_name(setting, seed)))
    return f"[seed {seed}](#/experiments/{parent.experiment_id}/runs/{run_id})" if run_id else ""


def settings_csv(summary: Summary) -> str:
    """The table of settings."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(summary.whole_table())
    return text.getvalue()


def end_lost(parent: Tracking, job: Job) -> None:
    """Mark a trial as killed whose process could not do so."""
    run_id = stored_run_id(job.run_uri)
    client = mlflow_client(parent.uri)
    if run_id and client.get_run(run_id).info.status == "RUNNING":
        client.set_terminated(run_id, "KILLED")


class BestEffort:
    """Calls MLflow; the first failure is told, and the sweep goes on."""

    def __init__(self, parent: Tracking, tell: Callable[[str], None]) -> None:
        self.parent, self._tell, self._has_told = parent, tell, False

    def __call__(self, action: Callable[[], object]) -> None:
        try:
            if self.parent.uri:
                with mlflow_failures(self.parent.uri, KEY):
                    action()
        except TrackingError as error:
            if not self._has_told:
                self._tell(f"tracking   MLflow lacks part of this sweep, which its record has: {one_line(error)}")
            self._has_told = True
