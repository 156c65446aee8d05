"""A run on a real S3 server that stops answering in the middle: nothing of the run is lost."""

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
import torch
from toy import TOY, toy_batch
from toy_run import toy_job
from toy_state import assert_equal

from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.runs.checkpoint import newest_checkpoint
from tips_ray.runs.folder import RunFolder
from tips_ray.storage import StorageError
from tips_ray.train.checkpointing import load_checkpoint
from tips_ray.train.loop import train
from tips_ray.train.run_recorder import RunRecorder
from tips_ray.train.state import TrainState, new_state

IMAGES = 4


def _config(**values) -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": IMAGES}
    keys = {"log_every_steps": 2, "checkpoint_every_steps": 4, "keep_every_steps": 4, "keep_last": 1, **values}
    return override(RunConfig, {**TOY, **run, **keys}, {})


def _steps(at: dict[int, Callable[[], None]]) -> Iterator[list[Batch]]:
    """Endless batches; before those of some steps, an action is called."""
    step = 0
    while True:
        at.get(step, lambda: None)()
        yield [toy_batch(IMAGES, seed=step).to("cpu", torch.float32)]
        step += 1


def _run(uri: str, config: RunConfig, at: dict[int, Callable[[], None]]) -> tuple[TrainState, list[float]]:
    reported: list[float] = []
    state, run = new_state(config), toy_job(config, uri)
    recorder = RunRecorder(run, 0, torch.device("cpu"), lambda metrics: reported.append(metrics["step"]))
    try:
        train(state, _steps(at), config, recorder)
    except Exception as error:
        recorder.note_failure(state.step, error)
        raise
    recorder.close()
    return state, reported


def _assert_whole(uri: str, state: TrainState, reported: list[float]) -> None:
    folder = RunFolder(uri)
    assert [line["step"] for line in folder.read_metrics()] == [1, 2, 4, 6, 8, 10]
    saved = [event for event in folder.read_events() if event["kind"] == "checkpoint"]
    assert [event["step"] for event in saved] == [4, 8, 10] and reported == [4, 8, 10]
    assert all(event["stall_ms"] > 0 and event["seconds"] > 0 for event in saved)
    found = newest_checkpoint(f"{uri}/checkpoints")
    assert found and found.step == 10
    load_checkpoint(restored := new_state(_config()), found)
    assert_equal(restored, state)


@pytest.mark.heavy
@pytest.mark.parametrize("folder", ["s3", pytest.param("local", marks=pytest.mark.variant)], indirect=True)
def test_a_run_knows_what_its_checkpoints_cost_and_ends_with_the_last_one(folder):
    state, reported = _run(folder, _config(), {})
    _assert_whole(folder, state, reported)
    stalls = [line["step"] for line in RunFolder(folder).read_metrics() if "checkpoint_stall_ms" in line]
    assert stalls == [6, 10]  # the next logged ones


@pytest.mark.heavy
@pytest.mark.parametrize("step", [4, pytest.param(5, marks=pytest.mark.variant)])
def test_a_store_that_resets_connections_for_a_while_loses_nothing_of_a_run(door, s3, tmp_path, step):
    uri = f"{s3.make_bucket('outages')}/{tmp_path.name}"

    def go_away() -> None:
        door.is_shut = True
        threading.Timer(1, setattr, (door, "is_shut", False)).start()

    state, reported = _run(uri, _config(), {step: go_away})
    _assert_whole(uri, state, reported)


@pytest.mark.heavy
def test_a_store_that_does_not_answer_for_a_while_loses_nothing_of_a_run(s3, tmp_path):
    uri = f"{s3.make_bucket('outages')}/{tmp_path.name}"

    def go_away() -> None:
        os.kill(s3.pid, signal.SIGSTOP)
        threading.Timer(1, os.kill, (s3.pid, signal.SIGCONT)).start()

    state, reported = _run(uri, _config(), {4: go_away})
    _assert_whole(uri, state, reported)


def test_a_store_that_stays_away_ends_a_run_with_one_sentence(door, s3, tmp_path):
    uri = f"{s3.make_bucket('outages')}/{tmp_path.name}"

    def go_away() -> None:
        while not newest_checkpoint(f"{uri}/checkpoints"):
            pass
        door.is_shut = True

    with pytest.raises(StorageError, match="cannot be reached; check AWS_ENDPOINT_URL"):
        _run(uri, _config(checkpoint_patience_seconds=0.2), {7: go_away})
    door.is_shut = False
    found = newest_checkpoint(f"{uri}/checkpoints")
    assert found and found.step == 4
    assert RunFolder(uri).read_metrics()[-1]["step"] >= 4
