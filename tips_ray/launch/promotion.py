"""A checkpoint of a run as a registered model of MLflow, with the alias `candidate` or `champion`."""

import os
import shutil
import warnings
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Literal

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.config.evaluation import trained_tokens
from tips_ray.runs.checkpoint import CheckpointInfo, list_checkpoints
from tips_ray.runs.evaluations import score_name, standing_of
from tips_ray.runs.mlflow_access import mlflow_client, mlflow_failures
from tips_ray.runs.mlflow_checks import require_answer
from tips_ray.runs.mlflow_models import model_of
from tips_ray.runs.mlflow_note import stored_note
from tips_ray.runs.mlflow_runs import KEY, tracking_uri
from tips_ray.runs.run import run_at
from tips_ray.weights import model_at

if TYPE_CHECKING:
    from mlflow import MlflowClient

Alias = Literal["candidate", "champion"]
CODE = Path(__file__).with_name("mlflow_pyfunc.py")
REQUIRED = ("mlflow", "transformers", "torch", "torchvision", "pillow", "pandas")


@dataclass(frozen=True)
class Promoted:
    """A version of a registered model."""

    name: str
    version: str
    alias: Alias
    step: int
    before: str | None
    """Version that had the alias before; None: none had it."""
    uri: str
    """Of MLflow."""


def promote(run_uri: str, name: str, alias: Alias, step: int | None = None) -> Promoted:
    """Register a checkpoint and give it the alias; one that is registered already only gets the alias.

    Args:
        run_uri: the run folder.
        name: of the registered model.
        alias: `candidate` or `champion`; the version that had it loses it.
        step: of the checkpoint; None: the best by the run's `evaluation.score`, else the newest.

    Raises:
        ValueError: the run has no such checkpoint, no text encoder's vocabulary, or no tracking.
        TrackingError: MLflow does not answer or refuses.
    """
    run = run_at(run_uri)
    checkpoint, uri = _checkpoint(run.config, run_uri, step), tracking_uri(run.config)
    note = stored_note(run_uri)
    if uri is None or note is None or not note.run_id:
        raise ValueError(f"{run_uri} has no MLflow run: set tracking.mlflow_uri, and start the run once more")
    require_answer(uri, KEY)
    with mlflow_failures(uri, KEY):
        client = mlflow_client(uri)
        before = _version_with(client, name, alias)
        found = _registered(client, name, run.config, checkpoint, note.run_id)
        client.set_registered_model_alias(name, alias, found)
    return Promoted(name, found, alias, checkpoint.step, before, uri)


def _checkpoint(config: RunConfig, run_uri: str, step: int | None) -> CheckpointInfo:
    saved = {one.step: one for one in list_checkpoints(storage.join(run_uri, "checkpoints"))}
    if not saved:
        raise ValueError(f"{run_uri} has no checkpoint yet")
    if step is None:
        best = standing_of(config, run_uri).best_steps()
        if not best and config.evaluation and config.evaluation.score:
            raise ValueError(f"no evaluation of {run_uri} has {score_name(config)}: give --step, or evaluate it first")
        step = best[0] if best and best[0] in saved else max(saved)
    if step not in saved:
        raise ValueError(f"{run_uri} has no checkpoint of step {step}; it has {', '.join(map(str, saved))}")
    return saved[step]


def _version_with(client: "MlflowClient", name: str, alias: str) -> str | None:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.get_model_version_by_alias(name, alias).version)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def _registered(client: "MlflowClient", name: str, config: RunConfig, checkpoint: CheckpointInfo, run_id: str) -> str:
    """The version of the checkpoint, which is made where it is missing."""
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name, description="TIPS image and text encoders, trained by tips_ray.")
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    model = model_of(client, run_id, config.name, checkpoint)
    for known in client.search_model_versions(f"name = '{name}'"):
        if known.source == model.artifact_location:
            return str(known.version)
    with TemporaryDirectory(prefix="tips-ray-model-") as scratch:
        folder = Path(scratch, "pyfunc")
        _write_pyfunc(config, checkpoint, folder, model.model_id, run_id)
        client.log_model_artifacts(model.model_id, str(folder))
    tags = {"run_name": config.name, "step": str(checkpoint.step), "checkpoint": checkpoint.uri}
    made = client.create_model_version(name, model.artifact_location, run_id, tags=tags, model_id=model.model_id)
    return str(made.version)


def _write_pyfunc(config: RunConfig, checkpoint: CheckpointInfo, folder: Path, model_id: str, run_id: str) -> None:
    """A folder that `mlflow.pyfunc` loads: the code, the weights as transformers has them, and what they need."""
    from mlflow.models import Model, ModelSignature
    from mlflow.pyfunc import save_model
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    weights = model_at(checkpoint.uri)
    if weights.tokenizer is None:
        raise ValueError(f"{checkpoint.uri} has no vocabulary, so that texts cannot be embedded")
    exported = weights.export_transformers(folder.with_name("model"))
    columns: Any = [ColSpec(DataType.binary, "image", required=False), ColSpec(DataType.string, "text", required=False)]
    found: Any = [ColSpec(Array(DataType.double), f"{one}_embedding", required=False) for one in ("image", "text")]
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    with warnings.catch_warnings(action="ignore"):  # there is no example of the input, which would be an image
        save_model(
            str(folder),
            python_model=str(CODE),
            artifacts={"model": str(exported)},
            signature=ModelSignature(Schema(columns), Schema(found)),
            pip_requirements=[f"{package}=={version(package)}" for package in REQUIRED],
            model_config={"cls": 1 if trained_tokens(config.objective)["synthetic"] == "cls_synthetic" else 0},
            mlflow_model=Model(run_id=run_id, model_id=model_id),
        )
    shutil.rmtree(exported)
