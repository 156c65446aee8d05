"""Whether MLflow can take a run: asked before the start; a run that MLflow knows does not wait for the answer."""

import threading
from collections.abc import Callable
from functools import partial

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.errors import CheckWarning
from tips_ray.runs.mlflow_access import TrackingError, without_credentials
from tips_ray.runs.mlflow_checks import require_answer
from tips_ray.runs.mlflow_note import stored_run_id
from tips_ray.runs.mlflow_runs import KEY, tracking_uri

KNOWN_RUN_SECONDS = 1.0
"""Longest wait for MLflow before a run goes on that it knows."""


def tracking_answers(config: RunConfig, is_readable: bool = True) -> str:
    """A server or a database could take the run now. `is_readable`: the run folder, which names its MLflow run, is."""
    uri = tracking_uri(config)
    if uri is None:
        raise CheckWarning(
            "no MLflow: storage is s3:// and tracking.mlflow_uri is not set; set it to see curves while it runs"
        )
    folder = storage.resolved(storage.join(config.storage, config.name))
    run_id = stored_run_id(folder) if is_readable else None
    try:
        ask = partial(require_answer, uri, KEY, config.tracking.experiment)
        _briefly(ask) if run_id else ask()
    except TrackingError as error:
        if run_id:
            raise CheckWarning(f"{error}; this run goes on without, and is sent to MLflow once that answers") from None
        raise
    if run_id == "":
        raise CheckWarning(
            f"{folder}/mlflow.json is damaged: the MLflow run whose tag run_folder is this folder goes on, or a new "
            'one starts; write {"run_id": "..."} into the file to name another'
        )
    return f"MLflow at {without_credentials(uri)}"


def _briefly(ask: Callable[[], None]) -> None:
    """Ask for at most a second; what comes later is told by the run itself, which goes on while MLflow is away.

    Raises:
        TrackingError: MLflow said so in time.
    """
    found: list[TrackingError] = []

    def asked() -> None:
        try:
            ask()
        except TrackingError as error:
            found.append(error)

    thread = threading.Thread(target=asked, name="mlflow", daemon=True)
    thread.start()
    thread.join(KNOWN_RUN_SECONDS)
    if found:
        raise found[0]
