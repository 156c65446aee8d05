"""Ends of runs that MLflow does not know: the driver was killed, or MLflow was away when the run ended."""

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from tips_ray import storage
from tips_ray.runs.folder import readable_config
from tips_ray.runs.lease import newest
from tips_ray.runs.mlflow_access import (
    TrackingError,
    database_path,
    mlflow_client,
    mlflow_failures,
    one_line,
    without_credentials,
)
from tips_ray.runs.mlflow_catch_up import catch_up
from tips_ray.runs.mlflow_checks import require_answer
from tips_ray.runs.mlflow_events import send_events
from tips_ray.runs.mlflow_follower import Status
from tips_ray.runs.mlflow_models import send_evaluations
from tips_ray.runs.mlflow_note import keep_told
from tips_ray.runs.mlflow_runs import KEY, absolute_uri
from tips_ray.runs.status import RunStatus, State

if TYPE_CHECKING:
    from mlflow import MlflowClient

STATUS: Mapping[State, Status] = {
    "complete": "FINISHED",
    "paused": "SCHEDULED",
    "stopped": "KILLED",
    "failed": "FAILED",
    "killed": "KILLED",
}
"""State of a run that nothing trains -> its status in MLflow."""
ANSWER_SECONDS = 3
IMPATIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(ANSWER_SECONDS)}


def tell_ends(runs: Iterable[RunStatus], with_credentials: str | None = None) -> Iterator[str]:
    """Tell MLflow the ends that it does not know. Best effort; yields a line for each MLflow that is away.

    Runs whose end it knows cost nothing: `mlflow.json` says so.

    Args:
        runs: those that may have ended.
        with_credentials: URI of an MLflow with user and password, which a run folder does not hold.
    """
    places: dict[str, list[RunStatus]] = {}
    for run in runs:
        if _is_untold(run) and (uri := _place(run)):
            if with_credentials and without_credentials(with_credentials) == uri:
                uri = with_credentials
            places.setdefault(uri, []).append(run)
    for uri, untold in places.items():
        try:
            with _impatient():
                require_answer(uri, KEY, seconds=ANSWER_SECONDS)
                yield from _faults_of(uri, untold)
        except TrackingError as error:
            yield f"tracking   MLflow may not know yet how {_named(untold)} ended: {error}"


def _faults_of(uri: str, runs: Iterable[RunStatus]) -> Iterator[str]:
    """Tell the end of each run; a line for each of which MLflow or the folder makes trouble."""
    for run in runs:
        try:
            with mlflow_failures(uri, KEY):
                _tell(mlflow_client(uri), run)
        except Exception as error:  # a foreign event, a metric that MLflow refuses: the other runs are told
            yield f"tracking   MLflow may not know yet how {run.uri} ended: {one_line(error)}"


def _tell(client: "MlflowClient", run: RunStatus) -> None:
    from mlflow.exceptions import MlflowException

    run_id, status = run.note.run_id if run.note else "", STATUS[run.state]
    try:
        known = client.get_run(run_id).info.status
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        known = status  # it was deleted for good, so there is nothing to tell
    if newest(run.uri)[0] != run.generation:
        return  # another start has begun meanwhile
    if known != status:
        if status == "FINISHED":
            catch_up(client, run_id, run.uri, run.total_steps or 0, run.config.get("log_every_steps", 1))
            if config := readable_config(run.config):
                send_evaluations(client, run_id, config, run.uri)
        send_events(client, run_id, run.uri, run.events)
        client.set_terminated(run_id, status, end_time=_milliseconds(run.seen))
    with suppress(storage.StorageError):  # a storage that cannot be written: the next command asks again
        keep_told(run.uri, run.generation)


def _is_untold(run: RunStatus) -> bool:
    if run.state not in STATUS or not run.note or not run.note.run_id:
        return False
    knows_ends = bool(run.note.uri) or run.state == "killed"  # earlier versions did not note the ends that they told
    return knows_ends and run.note.told_generation != run.generation


def _place(run: RunStatus) -> str | None:
    """URI of the run's MLflow; None where it has none, or its file is gone."""
    tracking, noted = run.config.get("tracking"), run.note.uri if run.note else ""
    given = tracking.get("mlflow_uri") if isinstance(tracking, dict) else None
    if given is None:
        uri = f"sqlite:///{Path(run.uri).resolve().parent / 'mlflow.db'}" if storage.is_local(run.uri) else None
    elif noted and without_credentials(given) != noted:
        uri = noted  # its path was relative to the working directory of that command
    else:
        uri = absolute_uri(given)
    path = database_path(uri)
    return None if path and not path.exists() else uri


@contextmanager
def _impatient() -> Iterator[None]:
    """Let requests to MLflow fail soon, unless the user has said how long they may take."""
    added = {name: value for name, value in IMPATIENT.items() if name not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


def _milliseconds(time: str) -> int | None:
    return int(datetime.fromisoformat(time).timestamp() * 1000) if time else None


def _named(runs: list[RunStatus]) -> str:
    return runs[0].uri if len(runs) == 1 else f"{len(runs)} runs"
