"""MLflow: one run per run folder, over all crashes and resumes.

The driver alone creates, resumes and ends the run; workers add metrics through a picklable handle. Metrics that cannot
be sent stay in the worker's buffer and in the run folder: tracking never stops a training that has begun, and the end
of the run or its next start sends what is missing.
"""

import json
import logging
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tips_ray import storage
from tips_ray.config.run import RunConfig
from tips_ray.runs.mlflow_access import (
    database_path,
    mlflow_client,
    mlflow_failures,
    one_line,
    without_credentials,
)
from tips_ray.runs.mlflow_catch_up import MOST_METRICS, catch_up
from tips_ray.runs.mlflow_checks import require_active, require_answer
from tips_ray.runs.mlflow_moves import ARTIFACTS, follow_artifacts, is_copy

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

logger = logging.getLogger(__name__)

KEY, NOTE = "tracking.mlflow_uri", "mlflow.json"
SEND_EVERY_SECONDS = 5.0
MOST_PARAMS = 100  # MLflow's limit per request
MOST_WAITING = 200_000
"""Metrics that a worker keeps while MLflow is away: about 50 MB."""
MOST_CHARACTERS = 6000  # of a parameter

Status = Literal["FINISHED", "FAILED", "KILLED", "SCHEDULED"]
"""`SCHEDULED`: paused, to go on later."""


class TrackingHandle:
    """Adds metrics to a run from any process; sends them in the background and in batches."""

    def __init__(self, uri: str | None, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()
        self._sending: Future | None = None
        self._sender: ThreadPoolExecutor | None = None
        self._is_behind = False

    def __reduce__(self) -> tuple:
        return TrackingHandle, (self.uri, self.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Add metrics; slashes in names make sections in MLflow's pages."""
        if self.uri is None:
            return
        from mlflow.entities import Metric

        now_ms = int(time.time() * 1000)
        self._waiting += [Metric(name, float(value), now_ms, step) for name, value in metrics.items()]
        is_idle = self._sending is None or self._sending.done()
        if is_idle and time.monotonic() - self._sent > SEND_EVERY_SECONDS:
            self._sender = self._sender or ThreadPoolExecutor(1, "mlflow")
            self._sending = self._sender.submit(self._send)

    def flush(self) -> None:
        """Send all that waits, now."""
        if self._sending is not None:
            self._sending.result()
        self._send()

    def _send(self) -> None:
        try:
            client = mlflow_client(self.uri)
            while batch := self._waiting[:MOST_METRICS]:
                client.log_batch(self.run_id, metrics=batch)
                del self._waiting[: len(batch)]
        except Exception as error:  # of MLflow, its database or its server: training goes on, whatever it is
            self._wait(error)
        else:
            self._tell_of_success()
        self._sent = time.monotonic()

    def _wait(self, error: Exception) -> None:
        """Say once that metrics wait, and keep the newest `MOST_WAITING` of them."""
        if not self._is_behind:
            logger.warning(
                "MLflow took no metrics, %d wait; training goes on, they are in the run folder and are sent once "
                "MLflow takes them: %s",
                len(self._waiting),
                one_line(error),
            )
        self._is_behind = True
        del self._waiting[: max(0, len(self._waiting) - MOST_WAITING)]  # the next start sends them from the run folder

    def _tell_of_success(self) -> None:
        if self._is_behind:
            logger.warning("MLflow takes metrics again; those that waited are sent")
        self._is_behind = False


class Tracking:
    """The driver's side of a run; without a URI it does nothing."""

    def __init__(
        self,
        uri: str | None,
        run_id: str = "",
        experiment_id: str = "",
        send_missing: Callable[[], None] = lambda: None,
    ) -> None:
        """`send_missing`: called at the end of a whole run, to send what MLflow lacks of it."""
        self.uri, self.run_id, self.experiment_id = uri, run_id, experiment_id
        self._send_missing = send_missing
        self._own = self.handle()

    def handle(self) -> TrackingHandle:
        """A handle for a worker; send it along with the config."""
        return TrackingHandle(self.uri, self.run_id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._own.log(step, metrics)

    def finish(self, status: Status) -> None:
        """Set the terminal status; without it a run stays RUNNING for ever."""
        if self.uri is None:
            return
        self._own.flush()
        try:
            mlflow_client(self.uri).set_terminated(self.run_id, status)
            if status == "FINISHED":
                self._send_missing()
        except Exception as error:  # as in a handle: it must not hide how training ended
            logger.warning(
                "MLflow did not take the end (%s) or all metrics of this run, which the run folder has: %s; the same "
                "command sends them later, or end its page by mlflow.MlflowClient(%r).set_terminated(%r, %r)",
                status,
                one_line(error),
                without_credentials(self.uri),
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
) -> Tracking:
    """Create the MLflow run of the run folder `folder`, or take it up again.

    Args:
        config: its `tracking` says where; its flat fields become params, and tags where a resume changed them.
        folder: URI of the run folder; `mlflow.json` there keeps the run's id.
        resumed_from_step: the restored step. Metrics after it are sent again, and MLflow keeps both.
        data_fingerprint: of the index, shown with the data.
        tags: of a new run and of one that is taken up, such as `batch_fingerprint`, by which runs on the same batches
            are found, and MLflow's `mlflow.parentRunId`.

    Raises:
        TrackingError: MLflow cannot take the run.
    """
    uri, tags = tracking_uri(config), tags or {}
    if uri is None:
        return Tracking(None)
    require_answer(uri, KEY, config.tracking.experiment)
    from mlflow.entities import RunTag

    with mlflow_failures(uri, KEY):
        client = mlflow_client(uri)
        follow_artifacts(uri)
        experiment_id = _experiment_id(client, uri, config.tracking.experiment, KEY)
        run, origin = _own_run(client, folder, experiment_id)
        if run is None:
            places = {"run_folder": without_credentials(folder), **origin}
            run = client.create_run(experiment_id, run_name=config.name, tags={**places, **tags})
            _log_data(client, run, config, data_fingerprint)
        _keep_run_id(folder, run.info.run_id)
        client.update_run(run.info.run_id, status="RUNNING")
        client.log_batch(run.info.run_id, tags=[RunTag(name, value) for name, value in tags.items()])
        missing = partial(catch_up, client, run.info.run_id, folder, log_every_steps=config.log_every_steps)
        if resumed_from_step is not None:
            client.set_tag(run.info.run_id, "resumed_from_step", str(resumed_from_step))
            missing(resumed_from_step)
        _log_params(client, run, config)
    send_missing = partial(missing, config.schedule.total_steps)
    return Tracking(uri, run.info.run_id, run.info.experiment_id, send_missing)


def prepare_tracking(config: RunConfig) -> None:
    """Set up a new database before several drivers start, which would all do it at once.

    Raises:
        TrackingError: MLflow cannot take the run.
    """
    uri = tracking_uri(config)
    if uri is not None:
        require_answer(uri, KEY, config.tracking.experiment)
        with mlflow_failures(uri, KEY):
            _experiment_id(mlflow_client(uri), uri, config.tracking.experiment, KEY)


def track_scores(uri: str, experiment: str, model: str, folder: str, scores: Mapping[str, float]) -> None:
    """The MLflow run of the results in `folder`, made or taken up again, with their scores.

    Raises:
        TrackingError: MLflow cannot take the run.
    """
    tracking = tracked_folder(
        _absolute(uri), "mlflow_uri", experiment, folder, "results_folder", model, {"model": without_credentials(model)}
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
        experiment_id = _experiment_id(client, uri, experiment, key)
        run = _known_run(client, folder, experiment_id, tag)
        if run is None:
            run = client.create_run(experiment_id, run_name=name, tags={**tags, tag: without_credentials(folder)})
        _keep_run_id(folder, run.info.run_id)
        client.update_run(run.info.run_id, status="RUNNING")
    return Tracking(uri, run.info.run_id, run.info.experiment_id)


def tracking_uri(config: RunConfig) -> str | None:
    """URI of MLflow, absolute so that it means the same in every process; None: no tracking."""
    if config.tracking.mlflow_uri is None:
        is_local = storage.is_local(config.storage)
        return f"sqlite:///{Path(storage.resolved(config.storage)).resolve() / 'mlflow.db'}" if is_local else None
    return _absolute(config.tracking.mlflow_uri)


def _absolute(uri: str) -> str:
    kind, separator, path = uri.partition("sqlite:///")
    return f"sqlite:///{Path(path).expanduser().resolve()}" if separator and not kind else uri


def _experiment_id(client: "MlflowClient", uri: str, name: str, key: str) -> str:
    """The experiment's id; it is made where it is missing.

    Raises:
        TrackingError: it was deleted.
    """
    from mlflow.exceptions import MlflowException

    path = database_path(uri)
    artifacts = (path.parent / ARTIFACTS).as_uri() if path else None
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            return client.create_experiment(name, artifact_location=artifacts)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another driver was faster
            if experiment is None:
                raise
    require_active(name, experiment.experiment_id, experiment.lifecycle_stage, uri, key)
    return experiment.experiment_id


def stored_run_id(folder: str) -> str | None:
    """The id in `mlflow.json`; empty: the file is damaged; None: there is none."""
    try:
        note = json.loads(storage.read_bytes(storage.join(folder, NOTE)))
    except storage.NotFoundError:
        return None
    except storage.StorageError:
        raise
    except ValueError:
        return ""
    run_id = note.get("run_id") if isinstance(note, dict) else None
    return run_id if isinstance(run_id, str) else ""


def _keep_run_id(folder: str, run_id: str) -> None:
    if stored_run_id(folder) != run_id:
        storage.write_text(storage.join(folder, NOTE), json.dumps({"run_id": run_id}))


def _known_run(client: "MlflowClient", folder: str, experiment_id: str, tag: str) -> "Run | None":
    """The run that `mlflow.json` names; where the file is damaged, the newest run that has this folder as its tag."""
    from mlflow.exceptions import MlflowException

    run_id = stored_run_id(folder)
    if run_id is None:
        return None
    if not run_id:
        place = without_credentials(folder).replace('"', "_")
        found = client.search_runs([experiment_id], f'tags.{tag} = "{place}"', max_results=1)
        return found[0] if found else None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _own_run(client: "MlflowClient", folder: str, experiment_id: str) -> tuple["Run | None", dict[str, str]]:
    """The run of a run folder, which may have moved; for a copy of a run folder none, and a tag for its new run."""
    run = _known_run(client, folder, experiment_id, "run_folder")
    if run is None:
        return None, {}
    known, place = run.data.tags.get("run_folder", ""), without_credentials(folder)
    if is_copy(folder, known, NOTE):
        logger.warning("%s is a copy of %s: it gets an MLflow run of its own", folder, known)
        return None, {"copied_from": run.info.run_id}
    if known != place:
        client.set_tag(run.info.run_id, "run_folder", place)
    return run, {}


def _log_params(client: "MlflowClient", run: "Run", config: RunConfig) -> None:
    """A param never changes in MLflow; a field that a resume changed becomes a tag."""
    from mlflow.entities import Param, RunTag

    values = {key: without_credentials(str(value))[:MOST_CHARACTERS] for key, value in _flat(config.model_dump())}
    known = run.data.params
    params = [Param(key, value) for key, value in values.items() if key not in known]
    tags = [RunTag(f"changed.{key}", value) for key, value in values.items() if known.get(key, value) != value]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run.info.run_id, params=params[start : start + MOST_PARAMS])
    client.log_batch(run.info.run_id, tags=tags)


def _log_data(client: "MlflowClient", run: "Run", config: RunConfig, fingerprint: str | None) -> None:
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput

    digest = fingerprint and fingerprint[:36]
    for source in config.data.sources:
        uri = without_credentials(source.uri)
        with warnings.catch_warnings(action="ignore"):  # it finds several classes for a local path, all alike
            data = MetaDataset(resolve_dataset_source(uri), name=uri, digest=digest)
        client.log_inputs(run.info.run_id, [DatasetInput(data._to_mlflow_entity())])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
