"""The MLflow run of a folder: where MLflow is, which experiment and run belong to the folder, and making them."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tips_ray import storage
from tips_ray.config.run import RunConfig
from tips_ray.runs.mlflow_access import database_path, without_credentials
from tips_ray.runs.mlflow_checks import require_active
from tips_ray.runs.mlflow_moves import ARTIFACTS, is_copy
from tips_ray.runs.mlflow_note import MlflowNote, keep_note, stored_note

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

logger = logging.getLogger(__name__)
KEY = "tracking.mlflow_uri"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment that MLflow's pages show as training; they would show it as one of language models."""


def tracking_uri(config: RunConfig) -> str | None:
    """URI of MLflow, absolute so that it means the same in every process; None: no tracking."""
    if config.tracking.mlflow_uri is None:
        is_local = storage.is_local(config.storage)
        return f"sqlite:///{Path(storage.resolved(config.storage)).resolve() / 'mlflow.db'}" if is_local else None
    return absolute_uri(config.tracking.mlflow_uri)


def absolute_uri(uri: str) -> str:
    """The URI of MLflow with the whole path of a sqlite file."""
    kind, separator, path = uri.partition("sqlite:///")
    return f"sqlite:///{Path(path).expanduser().resolve()}" if separator and not kind else uri


def experiment_id(client: "MlflowClient", uri: str, name: str, key: str) -> str:
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
            return client.create_experiment(name, artifact_location=artifacts, tags=KIND)
        except MlflowException:
            experiment = client.get_experiment_by_name(name)  # another driver was faster
            if experiment is None:
                raise
    require_active(name, experiment.experiment_id, experiment.lifecycle_stage, uri, key)
    return experiment.experiment_id


def open_run(
    client: "MlflowClient", uri: str, experiment: str, folder: str, name: str, tags: Mapping[str, str]
) -> "Run":
    """The MLflow run of a run folder, which may have moved; a copy of a run folder gets a new one.

    Args:
        client: of MLflow.
        uri: of MLflow.
        experiment: its id.
        folder: URI of the run folder; `mlflow.json` there is written.
        name: of a new run.
        tags: of a new run.
    """
    run, origin = _own_run(client, folder, experiment)
    if run is None:
        places = {"run_folder": without_credentials(folder), **origin}
        run = client.create_run(experiment, run_name=name, tags={**tags, **places})
    _keep(folder, uri, run)
    return run


def open_folder(
    client: "MlflowClient", uri: str, experiment: str, folder: str, tag: str, name: str, tags: Mapping[str, str]
) -> "Run":
    """As `open_run`, of a folder that is no run folder; its tag is `tag`."""
    run = _known_run(client, folder, experiment, tag)
    if run is None:
        run = client.create_run(experiment, run_name=name, tags={**tags, tag: without_credentials(folder)})
    _keep(folder, uri, run)
    return run


def _keep(folder: str, uri: str, run: "Run") -> None:
    before = stored_note(folder)
    told = before.told_generation if before and before.run_id == run.info.run_id else 0
    places = without_credentials(uri), without_credentials(folder)
    keep_note(folder, MlflowNote(run.info.run_id, run.info.experiment_id, *places, told))


def _known_run(client: "MlflowClient", folder: str, experiment: str, tag: str) -> "Run | None":
    """The run that `mlflow.json` names; where the file is damaged, the newest run that has this folder as its tag."""
    from mlflow.exceptions import MlflowException

    note = stored_note(folder)
    if note is None:
        return None
    if not note.run_id:
        place = without_credentials(folder).replace('"', "_")
        found = client.search_runs([experiment], f'tags.{tag} = "{place}"', max_results=1)
        return found[0] if found else None
    try:
        run = client.get_run(note.run_id)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def _own_run(client: "MlflowClient", folder: str, experiment: str) -> tuple["Run | None", dict[str, str]]:
    """The run of a run folder, which may have moved; for a copy of a run folder none, and a tag for its new run."""
    run = _known_run(client, folder, experiment, "run_folder")
    if run is None:
        return None, {}
    known, place = run.data.tags.get("run_folder", ""), without_credentials(folder)
    if is_copy(folder, known):
        logger.warning("%s is a copy of %s: it gets an MLflow run of its own", folder, known)
        return None, {"copied_from": run.info.run_id}
    if known != place:
        client.set_tag(run.info.run_id, "run_folder", place)
    return run, {}
