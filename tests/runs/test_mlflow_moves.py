"""A run folder that is moved keeps its MLflow run; a copy gets one of its own."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient
from toy import TOY

from tips_ray.config import override
from tips_ray.config.run import RunConfig
from tips_ray.runs import RunFolder
from tips_ray.runs.mlflow_runs import tracking_uri
from tips_ray.runs.tracking import start_tracking


def _config(storage: Path) -> RunConfig:
    tree = {**TOY, "name": "small", "storage": str(storage), "data": {"sources": [{"uri": "photos"}]}}
    return override(RunConfig, tree, {"global_batch_images": 8, "log_every_steps": 1})


@pytest.fixture
def storage(prepared, tmp_path) -> Path:
    """A storage folder with a database and the run `small`, which logged one loss."""
    storage = tmp_path / "one"
    shutil.copytree(prepared, storage)
    RunFolder(f"{storage}/small").log_metrics(1, {"loss/total": 2.0})
    _started(storage)
    return storage


@pytest.fixture(scope="module")
def prepared(tmp_path_factory) -> Path:
    """A storage folder whose database took seconds to make."""
    storage = tmp_path_factory.mktemp("prepared") / "one"
    start_tracking(_config(storage), f"{storage}/other").finish("FINISHED")
    return storage


def _started(storage: Path, step: int | None = None) -> str:
    """Start the run and end it; returns the id of its MLflow run."""
    start_tracking(_config(storage), f"{storage}/small", step).finish("KILLED")
    return json.loads((storage / "small" / "mlflow.json").read_text())["run_id"]


def _client(storage: Path) -> MlflowClient:
    return MlflowClient(tracking_uri(_config(storage)))


@pytest.mark.heavy
def test_a_moved_storage_keeps_its_mlflow_run_and_finds_its_files(storage, tmp_path):
    before = _started(storage)
    moved = tmp_path / "two"
    storage.rename(moved)
    assert _started(moved, 1) == before
    run = _client(moved).get_run(before)
    assert run.data.tags["run_folder"] == f"{moved}/small" and (run.info.artifact_uri or "").startswith(
        f"file://{moved}/mla"
    )
    experiment = _client(moved).get_experiment(run.info.experiment_id)
    assert experiment.artifact_location == f"file://{moved}/mlartifacts"


@pytest.mark.heavy
def test_a_copied_run_folder_gets_an_mlflow_run_of_its_own_with_the_whole_curve(storage, tmp_path):
    before = _started(storage)
    copy = tmp_path / "copy"
    shutil.copytree(storage, copy)
    own = _started(copy, 1)
    assert own != before
    run = _client(copy).get_run(own)
    assert run.data.tags["copied_from"] == before and run.data.metrics["loss/total"] == 2.0
    assert (_started(copy, 1), _started(storage, 1)) == (own, before), "each goes on with its own"
    assert f"file://{storage}/" in str(_client(storage).get_run(before).info.artifact_uri)


@pytest.mark.heavy
def test_a_run_below_a_link_to_its_storage_is_no_copy(storage, tmp_path):
    before = _started(storage)
    (tmp_path / "link").symlink_to(storage)
    assert _started(tmp_path / "link", 1) == before
