"""Where an attempt begins, looked up while the storage is away; without Ray."""

from types import SimpleNamespace
from typing import Any

import pytest
from toy_run import tiny_run

from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import RunInputs
from tips_ray.storage import StorageError
from tips_ray.train import dataset as pipeline
from tips_ray.train.dataset import RestOfRun


@pytest.fixture
def rest(tmp_path, monkeypatch) -> RestOfRun:
    monkeypatch.setattr(pipeline, "tell_pace", lambda stream, step: None)
    monkeypatch.setattr(pipeline, "training_stream", lambda stream, step: step)
    config = tiny_run(tmp_path, "unused", checkpoint_patience_seconds=0.2)
    inputs: Any = SimpleNamespace(run=RunInputs(config, str(tmp_path / "run"), {}, None), stream=None)
    return RestOfRun(inputs)


def test_storage_that_is_away_when_a_group_starts_is_waited_for(rest, monkeypatch):
    answers = iter([StorageError("s3://b: away", may_pass=True), 7])

    def step(run: RunInputs) -> int:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    monkeypatch.setattr(pipeline, "resumed_step", step)
    assert rest() == 7


def test_a_worker_that_would_fail_again_stops_the_next_attempt(rest):
    RunFolder(rest.inputs.run.uri).log_event("failure", 3, error="bad rows", type="ValueError", is_final=True)
    with pytest.raises(ValueError, match="bad rows"):
        rest()
