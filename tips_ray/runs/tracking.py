"""MLflow: one run per run folder, over all crashes and resumes.

The driver alone creates, resumes and ends the run; workers add metrics through a picklable handle. Nothing waits for
MLflow once a run is known: what cannot be sent is in the run folder, from which the driver's follower, the end of the
run, its next start or `tips-ray runs` sends it.
"""

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from tips_ray.config import RunConfig
from tips_ray.runs.mlflow_access import TrackingError, mlflow_client, mlflow_failures, one_line, without_credentials
from tips_ray.runs.mlflow_checks import require_answer
from tips_ray.runs.mlflow_follower import Follower, RunStart, Status
from tips_ray.runs.mlflow_handle import TrackingHandle
from tips_ray.runs.mlflow_note import MlflowNote, stored_note
from tips_ray.runs.mlflow_runs import KEY, absolute_uri, experiment_id, open_folder, tracking_uri

logger = logging.getLogger(__name__)
END_SECONDS: Mapping[Status, float] = {"FINISHED": 120, "FAILED": 60, "SCHEDULED": 60, "KILLED": 15}
"""Longest wait for MLflow at the end of a run; who stops a run will soon kill it."""


class Tracking:
    """The driver's side of a run; without a URI it does nothing."""

    def __init__(
        self, uri: str | None, run_id: str = "", experiment_id: str = "", follower: Follower | None = None
    ) -> None:
        """`follower`: of a run folder; None: the folder is no run folder."""
        self.uri, self.run_id, self.experiment_id = uri, run_id, experiment_id
        self._follower = follower
        self._own = self.handle()

    def handle(self) -> TrackingHandle:
        """A handle for a worker; send it along with the config."""
        return TrackingHandle(self.uri, self.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._own.log(step, metrics)

    def finish(self, status: Status) -> None:
        """Set the terminal status once all the rest is sent; without it a run stays RUNNING for ever."""
        if self.uri is None:
            return
        self._own.close(END_SECONDS[status])
        if self._follower:
            if not self._follower.finish(status, END_SECONDS[status]):
                self._tell_of_no_end(status, "see above, or it does not answer")
            return
        try:
            mlflow_client(self.uri).set_terminated(self.run_id, status)
        except Exception as error:  # as in a handle: it must not hide how the work ended
            self._tell_of_no_end(status, one_line(error))

    def _tell_of_no_end(self, status: Status, reason: str) -> None:
        logger.warning(
            "MLflow did not take the end (%s) or all metrics of this run, which the run folder has: %s; the same "
            "command or tips-ray runs list sends it later, or end its page by "
            "mlflow.MlflowClient(%r).set_terminated(%r, %r)",
            status,
            reason,
            without_credentials(self.uri or ""),
            self.run_id,
            status,
        )

    @property
    def how_to_view(self) -> str | None:
        """The page of the run, or the command that serves it."""
        if self.uri is None:
            return None
        page = f"#/experiments/{self.experiment_id}/runs/{self.run_id}"
        if self.uri.startswith("http"):
            return f"{without_credentials(self.uri).rstrip('/')}/{page}"
        return f"mlflow ui --backend-store-uri {self.uri}"


def start_tracking(
    config: RunConfig,
    folder: str,
    resumed_from_step: int | None = None,
    data_fingerprint: str | None = None,
    tags: Mapping[str, str] | None = None,
    generation: int = 0,
    cluster: Callable[[], list[dict[str, Any]]] = lambda: [],
    write_report: Callable[[Path], object] | None = None,
) -> Tracking:
    """Create the MLflow run of the run folder `folder`, or take it up again without waiting for MLflow.

    Args:
        config: its `tracking` says where; its flat fields become params, and tags where a resume changed them.
        folder: URI of the run folder; `mlflow.json` there keeps the run's id.
        resumed_from_step: the restored step. Metrics after it are sent again, and MLflow keeps both.
        data_fingerprint: of the index, shown with the data.
        tags: of a new run and of one that is taken up, such as `batch_fingerprint`, by which runs on the same batches
            are found, and MLflow's `mlflow.parentRunId`.
        generation: of the run's lease, noted when MLflow knows the end.
        cluster: gives the nodes, see `log_cluster`; called in another thread until it gives some.
        write_report: writes the report of the run folder, which becomes an artefact at the end.

    Raises:
        TrackingError: MLflow cannot take a new run.
    """
    uri = tracking_uri(config)
    if uri is None:
        return Tracking(None)
    start = RunStart(config, folder, uri, resumed_from_step, data_fingerprint, tags, generation, cluster, write_report)
    note = stored_note(folder)
    if note is None or not note.is_of(uri, folder):
        note = _opened(start, note)
    return Tracking(uri, note.run_id, note.experiment_id, Follower(start, note.run_id))


def _opened(start: RunStart, known: MlflowNote | None) -> MlflowNote:
    """The note of a run that MLflow was asked for; one that it knows goes on while MLflow is away."""
    try:
        require_answer(start.uri, KEY, start.config.tracking.experiment)
        with mlflow_failures(start.uri, KEY):
            run = start.opened(mlflow_client(start.uri))
    except TrackingError as error:
        if known is None or not known.run_id:
            raise
        logger.warning("%s; the run goes on without, and is sent once MLflow answers", error)
        return known
    return MlflowNote(run.info.run_id, run.info.experiment_id)


def track_scores(uri: str, experiment: str, model: str, folder: str, scores: Mapping[str, float]) -> None:
    """The MLflow run of the results in `folder`, made or taken up again, with their scores.

    Raises:
        TrackingError: MLflow cannot take the run.
    """
    tracking = tracked_folder(
        absolute_uri(uri),
        "mlflow_uri",
        experiment,
        folder,
        "results_folder",
        model,
        {"model": without_credentials(model)},
    )
    tracking.log(0, scores)
    tracking.finish("FINISHED")


def tracked_folder(
    uri: str, key: str, experiment: str, folder: str, tag: str, name: str, tags: Mapping[str, str]
) -> Tracking:
    """The MLflow run of a folder that is no run folder, made or taken up again.

    Args:
        uri: absolute URI of MLflow.
        key: of the config that names it.
        experiment: name.
        folder: whose `mlflow.json` keeps the run's id.
        tag: name of the tag that holds the folder.
        name: of a new run.
        tags: of a new run.

    Raises:
        TrackingError: MLflow cannot take the run.
    """
    require_answer(uri, key, experiment)
    with mlflow_failures(uri, key):
        client = mlflow_client(uri)
        number = experiment_id(client, uri, experiment, key)
        run = open_folder(client, uri, number, folder, tag, name, tags)
        client.update_run(run.info.run_id, status="RUNNING")
    return Tracking(uri, run.info.run_id, run.info.experiment_id)
