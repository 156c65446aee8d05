"""Keeps the MLflow run of a run folder like the folder, in a thread of the driver that training never waits for."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from tips_ray.config.run import RunConfig
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.mlflow_access import mlflow_client, one_line
from tips_ray.runs.mlflow_catch_up import catch_up
from tips_ray.runs.mlflow_checks import require_answer
from tips_ray.runs.mlflow_events import send_events
from tips_ray.runs.mlflow_facts import (
    facts_of_start,
    health_tags,
    log_cluster,
    log_data,
    log_files,
    log_params,
    log_tags,
    machine_tags,
)
from tips_ray.runs.mlflow_models import log_lineage, send_evaluations
from tips_ray.runs.mlflow_moves import follow_artifacts
from tips_ray.runs.mlflow_note import keep_told
from tips_ray.runs.mlflow_runs import KEY, experiment_id, open_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
Status = Literal["FINISHED", "FAILED", "KILLED", "SCHEDULED"]
"""`SCHEDULED`: paused, to go on later."""
LOOK_EVERY_SECONDS = 15.0


@dataclass(frozen=True)
class RunStart:
    """What a start tells MLflow about its run."""

    config: RunConfig
    folder: str
    """URI of the run folder."""
    uri: str
    """Of MLflow."""
    resumed_from_step: int | None = None
    """The restored step; metrics after it are sent again, and MLflow keeps both."""
    data_fingerprint: str | None = None
    tags: Mapping[str, str] | None = None
    generation: int = 0
    """Of the run's lease."""
    cluster: Callable[[], list[dict[str, Any]]] = lambda: []
    """Nodes, see `log_cluster`; empty while they are not known."""
    write_report: Callable[[Path], object] | None = None
    """Writes the report of the run folder as one HTML file."""

    def opened(self, client: "MlflowClient") -> "Run":
        """The MLflow run, found or made.

        Raises:
            TrackingError: the experiment was deleted.
        """
        follow_artifacts(self.uri)
        experiment = experiment_id(client, self.uri, self.config.tracking.experiment, KEY)
        tags = {**self.config.tracking.tags, **(self.tags or {})}
        return open_run(client, self.uri, experiment, self.folder, self.config.name, tags)


class Follower:
    """Sends facts, missing metrics and events of a run folder; whatever fails is tried again at the next look."""

    def __init__(self, start: RunStart, run_id: str) -> None:
        self.run_id = run_id
        """Changes where MLflow has lost the run, and it was made anew."""
        self._start, self._folder = start, RunFolder(start.folder)
        self._is_described = self._knows_cluster = self._is_behind = False
        self._events = -1  # number of events that MLflow has
        self._status: Status | None = None
        self._is_over = threading.Event()
        self._is_told = self._is_abandoned = False
        self._thread = threading.Thread(target=self._follow, name="mlflow of the run", daemon=True)
        self._thread.start()

    def finish(self, status: Status, seconds: float) -> bool:
        """Send the rest and then the end; False: MLflow did not take the end in so many seconds."""
        self._status = status
        self._is_over.set()
        self._thread.join(seconds)
        self._is_abandoned = self._thread.is_alive()
        return self._is_told

    def _follow(self) -> None:
        while True:
            self._tried(self._look)
            if self._is_over.wait(LOOK_EVERY_SECONDS):
                break
        self._tried(self._look)
        if self._status != "KILLED":  # who stopped the run waits; the next start sends what is missing
            self._tried(self._send_missing)
        self._tried(self._end)
        if self._status in ("FINISHED", "FAILED"):
            self._tried(self._log_report)

    def _tried(self, work: Callable[["MlflowClient"], None]) -> None:
        """Do some work; the first of several failures is told."""
        try:
            if not self._is_described:  # MLflow itself would upgrade the tables of an older database unasked
                require_answer(self._start.uri, KEY, self._start.config.tracking.experiment)
            work(mlflow_client(self._start.uri))
            self._is_behind = False
        except Exception as error:  # of MLflow, its database, its server or the storage: training goes on
            if not self._is_behind:
                logger.warning("MLflow lacks a part of this run, which the run folder has: %s", one_line(error))
            self._is_behind = True

    def _look(self, client: "MlflowClient") -> None:
        if not self._is_described:
            self._describe(client)
            self._is_described = True
        events = self._folder.read_events()
        if len(events) != self._events:
            log_tags(client, client.get_run(self.run_id), machine_tags(events))
            send_events(client, self.run_id, self._start.folder, events)
            send_evaluations(client, self.run_id, self._start.config, self._start.folder)
            log_lineage(client, self.run_id, events)
            self._events = len(events)
            log_tags(client, client.get_run(self.run_id), self._health())
        if not self._knows_cluster and (nodes := self._start.cluster()):
            log_cluster(client, client.get_run(self.run_id), nodes)
            self._knows_cluster = True

    def _describe(self, client: "MlflowClient") -> None:
        """Take the run up: it runs, with the tags, params and files of this start and all metrics before it."""
        start = self._start
        run = start.opened(client)
        self.run_id = run.info.run_id
        if self._status is None:
            client.update_run(self.run_id, status="RUNNING")
        resumed = {} if start.resumed_from_step is None else {"resumed_from_step": str(start.resumed_from_step)}
        tags = {**facts_of_start(), **start.config.tracking.tags, **(start.tags or {}), **resumed}
        log_tags(client, run, tags)
        log_params(client, run, start.config)
        log_data(client, run, start.config, start.data_fingerprint)
        if start.resumed_from_step is not None:
            catch_up(client, self.run_id, start.folder, start.resumed_from_step, start.config.log_every_steps)
        log_files(client, self.run_id, start.config)

    def _send_missing(self, client: "MlflowClient") -> None:
        config = self._start.config
        catch_up(client, self.run_id, self._start.folder, config.schedule.total_steps, config.log_every_steps)
        send_evaluations(client, self.run_id, config, self._start.folder)
        log_tags(client, client.get_run(self.run_id), self._health())

    def _health(self) -> dict[str, str]:
        return health_tags(self._start.config, self._folder.sampled_metrics())

    def _end(self, client: "MlflowClient") -> None:
        if self._is_abandoned:
            return  # another start of this process may have taken the run up meanwhile
        client.set_terminated(self.run_id, self._status)
        self._is_told = True
        keep_told(self._start.folder, self._start.generation)

    def _log_report(self, client: "MlflowClient") -> None:
        if self._start.write_report:
            with TemporaryDirectory() as scratch:
                self._start.write_report(path := Path(scratch, "report.html"))
                client.log_artifact(self.run_id, str(path))
