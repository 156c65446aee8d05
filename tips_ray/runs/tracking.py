"""MLflow: one run per run folder, over all crashes and resumes.

The driver alone creates, resumes and ends the run; workers add metrics through a picklable handle. Metrics that cannot
be sent stay in the worker's buffer and in the run folder: tracking never stops a training that has begun.
"""

import json
import logging
import os
import re
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tips_ray import storage
from tips_ray.config.run import RunConfig

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Run

logger = logging.getLogger(__name__)

ANSWER_SECONDS = 10
SEND_EVERY_SECONDS = 5.0
MOST_METRICS, MOST_PARAMS = 1000, 100  # MLflow's limits per request
MOST_CHARACTERS = 6000  # of a parameter
CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")
DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_DISABLE_TELEMETRY": "true"}
DEFAULTS |= {"MLFLOW_LOGGING_LEVEL": "WARNING"}
"""Defaults of environment variables: MLflow itself would try for four minutes, and log every table."""

Status = Literal["FINISHED", "FAILED", "KILLED"]


class TrackingHandle:
    """Adds metrics to a run from any process; sends them in the background and in batches."""

    def __init__(self, uri: str | None, run_id: str) -> None:
        self.uri, self.run_id = uri, run_id
        self._waiting: list[Metric] = []
        self._sent = time.monotonic()
        self._sending: Future | None = None
        self._sender: ThreadPoolExecutor | None = None

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
        from mlflow.exceptions import MlflowException

        try:
            while batch := self._waiting[:MOST_METRICS]:
                _client(self.uri).log_batch(self.run_id, metrics=batch)
                del self._waiting[: len(batch)]
        except MlflowException as error:
            logger.warning("MLflow took no metrics, %d wait: %s", len(self._waiting), _one_line(error))
        self._sent = time.monotonic()


class Tracking:
    """The driver's side of a run; without a URI it does nothing."""

    def __init__(self, uri: str | None, run_id: str = "", experiment_id: str = "") -> None:
        self.uri, self.run_id, self.experiment_id = uri, run_id, experiment_id
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
        from mlflow.exceptions import MlflowException

        self._own.flush()
        try:
            _client(self.uri).set_terminated(self.run_id, status)
        except MlflowException as error:
            logger.warning("MLflow did not take the status %s: %s", status, _one_line(error))

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
    parent_run_id: str | None = None,
) -> Tracking:
    """Create the MLflow run of the run folder `folder`, or take it up again.

    Args:
        config: its `tracking` says where; its flat fields become params, and tags where a resume changed them.
        folder: URI of the run folder; `mlflow.json` there keeps the run's id.
        resumed_from_step: the restored step. Metrics after it are sent again, and MLflow keeps both.
        data_fingerprint: of the index, shown with the data.
        parent_run_id: the sweep that this run is a trial of.

    Raises:
        ConnectionError: the tracking server does not answer.
    """
    uri = tracking_uri(config)
    if uri is None:
        return Tracking(None)
    require_answer(uri)
    client = _client(uri)
    experiment_id = _experiment_id(client, uri, config.tracking.experiment)
    run = _known_run(client, folder)
    if run is None:
        parent = {"mlflow.parentRunId": parent_run_id} if parent_run_id else {}
        tags = {"run_folder": without_credentials(folder), **parent}
        run = client.create_run(experiment_id, run_name=config.name, tags=tags)
        storage.write_text(storage.join(folder, "mlflow.json"), json.dumps({"run_id": run.info.run_id}))
        _log_data(client, run, config, data_fingerprint)
    client.update_run(run.info.run_id, status="RUNNING")
    if resumed_from_step is not None:
        client.set_tag(run.info.run_id, "resumed_from_step", str(resumed_from_step))
    _log_params(client, run, config)
    return Tracking(uri, run.info.run_id, run.info.experiment_id)


def prepare_tracking(config: RunConfig) -> None:
    """Set up a new database before several drivers start, which would all do it at once.

    Raises:
        ConnectionError: the tracking server does not answer.
    """
    uri = tracking_uri(config)
    if uri is not None:
        require_answer(uri)
        _experiment_id(_client(uri), uri, config.tracking.experiment)


def track_scores(uri: str, experiment: str, model: str, folder: str, scores: Mapping[str, float]) -> None:
    """The MLflow run of the results in `folder`, made or taken up again, with their scores.

    Raises:
        ConnectionError: the tracking server does not answer.
    """
    uri = _absolute(uri)
    require_answer(uri)
    client = _client(uri)
    run = _known_run(client, folder)
    if run is None:
        tags = {"model": without_credentials(model), "results_folder": without_credentials(folder)}
        run = client.create_run(_experiment_id(client, uri, experiment), run_name=model, tags=tags)
        storage.write_text(storage.join(folder, "mlflow.json"), json.dumps({"run_id": run.info.run_id}))
    tracking = Tracking(uri, run.info.run_id, run.info.experiment_id)
    tracking.log(0, scores)
    tracking.finish("FINISHED")


def tracking_uri(config: RunConfig) -> str | None:
    """URI of MLflow, absolute so that it means the same in every process; None: no tracking."""
    if config.tracking.mlflow_uri is None:
        is_local = storage.is_local(config.storage)
        return f"sqlite:///{Path(config.storage).resolve() / 'mlflow.db'}" if is_local else None
    return _absolute(config.tracking.mlflow_uri)


def _absolute(uri: str) -> str:
    kind, separator, path = uri.partition("sqlite:///")
    return f"sqlite:///{Path(path).resolve()}" if separator and not kind else uri


def without_credentials(text: str) -> str:
    """`https://user:password@host` -> `https://host`."""
    return CREDENTIALS.sub("", text)


def _client(uri: str | None) -> "MlflowClient":
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    return MlflowClient(uri)


def require_answer(uri: str, key: str = "tracking.mlflow_uri") -> None:
    """Ask once: MLflow itself would try for minutes. For a database, make the folder that holds it.

    Args:
        uri: of the tracking server.
        key: of the config, which names it.

    Raises:
        ConnectionError: the tracking server does not answer.
    """
    if uri.startswith("sqlite:///"):
        Path(uri.removeprefix("sqlite:///")).parent.mkdir(parents=True, exist_ok=True)
    if not uri.startswith("http"):
        return
    address = without_credentials(uri).rstrip("/")
    try:
        urllib.request.urlopen(f"{address}/health", timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers, if only to say that we must log in
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise ConnectionError(
            f"{key} ({address}) does not answer ({reason}): start that server or correct the address"
        ) from None


def _experiment_id(client: "MlflowClient", uri: str, name: str) -> str:
    """The first request to a new database also sets it up, here and not in several workers at once."""
    from mlflow.exceptions import MlflowException

    database = Path(uri.removeprefix("sqlite:///"))
    artifacts = (database.parent / "mlartifacts").as_uri() if uri.startswith("sqlite:") else None
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return experiment.experiment_id
    try:
        return client.create_experiment(name, artifact_location=artifacts)
    except MlflowException:
        experiment = client.get_experiment_by_name(name)  # another driver was faster
        if experiment is None:
            raise
        return experiment.experiment_id


def _known_run(client: "MlflowClient", folder: str) -> "Run | None":
    """The run that `mlflow.json` names, if this server has it."""
    from mlflow.exceptions import MlflowException

    try:
        run_id = json.loads(storage.read_text(storage.join(folder, "mlflow.json")))["run_id"]
    except storage.NotFoundError:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


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


def _one_line(error: Exception) -> str:
    return without_credentials(" ".join(str(error).split()))[:300]
