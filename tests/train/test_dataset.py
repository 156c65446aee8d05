"""The step at which a worker group starts, looked up while the storage does not answer; without Ray."""

import pytest
from toy_run import tiny_run, toy_job

from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import Run
from tips_ray.storage import StorageError
from tips_ray.train import dataset
from tips_ray.train.dataset import RestOfRun


@pytest.fixture
def rest(tmp_path, monkeypatch) -> RestOfRun:
    monkeypatch.setattr(dataset, "tell_coordinator", lambda *stream_and_step: None)
    monkeypatch.setattr(dataset, "training_stream", lambda *stream_and_step: stream_and_step[-1])
    config = tiny_run(tmp_path, "unused", checkpoint_patience_seconds=0.2)
    return RestOfRun(toy_job(config, str(tmp_path / "run")), None)


def test_storage_that_is_away_when_a_group_starts_is_waited_for(rest, monkeypatch):
    answers = iter([StorageError("s3://b: away", may_pass=True), 7])

    def step(run: Run) -> int:
        answer = next(answers)
        if isinstance(answer, StorageError):
            raise answer
        return answer

    monkeypatch.setattr(Run, "resumed_step", step)
    assert rest() == 7


def test_a_worker_that_would_fail_again_stops_the_next_attempt(rest):
    RunFolder(rest.run.uri).log_event("failure", 3, error="bad rows", type="ValueError", is_final=True)
    with pytest.raises(ValueError, match="bad rows"):
        rest()
