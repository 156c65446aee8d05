"""A run that an earlier version began resumes.

`golden/run_begun_before.tar.gz` was written at commit 1a67a1e, before the names in the code changed: `tiny_run` on
`write_scenes(..., 40)` with 8 steps on one rank, the checkpoint of step 4, and metrics of all 8 steps.
"""

import json
import tarfile
from pathlib import Path

import pytest
import yaml
from toy_run import write_scenes

from jobs.cli import main
from tips_ray.config import RunConfig, override
from tips_ray.data.index_folder import index_of
from tips_ray.runs import RunFolder, list_checkpoints

BEFORE = Path(__file__).parents[1] / "golden" / "run_begun_before.tar.gz"


@pytest.fixture
def config(tmp_path) -> RunConfig:
    """The unpacked run with the places of this test, and the fingerprint that version 1 of the index gives its data."""
    with tarfile.open(BEFORE) as archive:
        archive.extractall(tmp_path, filter="data")
    path, source = tmp_path / "tiny" / "config.yaml", write_scenes(tmp_path / "scenes", 40)
    values = {"storage": str(tmp_path), "data.sources": [{"uri": source}], "tracking.mlflow_uri": None}
    config = override(RunConfig, yaml.safe_load(path.read_text()), values)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    manifest = tmp_path / "tiny" / "checkpoints" / "step-00000004" / "manifest.json"
    index = index_of(config.data, str(tmp_path / "index"))
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "data_fingerprint": index.earlier}))
    return config


@pytest.mark.heavy
def test_a_run_that_an_earlier_version_began_goes_on_with_the_same_losses(config, tmp_path):
    folder, path = RunFolder(str(tmp_path / "tiny")), tmp_path / "run.yaml"
    before = {line["step"]: line["loss/total"] for line in folder.read_metrics()}
    path.write_text((tmp_path / "tiny" / "config.yaml").read_text())
    assert main(["pretrain", str(path), "--without-ray"]) == 0
    resumed = [event["step"] for event in folder.read_events() if event["kind"] == "resume"]
    assert resumed == [4] and sorted(before) == list(range(1, 9))
    assert {line["step"]: line["loss/total"] for line in folder.read_metrics()} == pytest.approx(before, rel=1e-4)
    assert [found.step for found in list_checkpoints(f"{folder.uri}/checkpoints")] == [4, 8]
