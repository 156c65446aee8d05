"""A graceful stop: ranks that are asked to leave agree, save a step together and leave."""

import itertools
import time
from types import SimpleNamespace

import pytest
import torch
from ranks import run_on_ranks
from toy import TOY, toy_batch

from tips_ray.config import RunConfig, override
from tips_ray.distributed import rank, world_size
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.restart import Restart, attempt_before
from tips_ray.train import loop
from tips_ray.train.loop import train
from tips_ray.train.state import TrainState, new_state

IMAGES = 4


class Saves:
    """A recorder that keeps the steps that were logged and saved."""

    def __init__(self) -> None:
        self.logged: list[int] = []
        self.saved: list[int] = []

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.logged.append(step)

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        self.saved.append(state.step)

    def save_bad_step(self, state, micro_batches, facts) -> str:
        raise AssertionError("no step of this file is bad")

    def rejects(self) -> str:
        raise AssertionError("no row of this file is bad")


def _config() -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "log_every_steps": 4, "checkpoint_every_steps": 8}
    sizes = {"global_batch_images": IMAGES * world_size(), "resources": {"workers": world_size()}}
    return override(RunConfig, {**TOY, **run, **sizes}, {"schedule.total_steps": 10})


def _trained(asked_at: int, asked_rank: int = 0, **keys) -> tuple[int, Saves]:
    state, recorder, config = new_state(_config()), Saves(), override(RunConfig, _config().model_dump(), keys)
    steps = ([toy_batch(IMAGES, seed).to("cpu", torch.float32)] for seed in itertools.count())
    train(state, steps, config, recorder, lambda: "go" if rank() == asked_rank and state.step >= asked_at else "")
    return state.step, recorder


def test_a_rank_that_is_asked_leaves_after_the_step_under_way_and_one_more_which_is_saved():
    step, recorder = _trained(asked_at=4)  # its vote in step 5 is read once step 6 is launched
    assert step == 7 and recorder.saved == [7] and recorder.logged == [1, 4, 7]


def test_a_vote_in_a_logged_step_is_read_at_once():
    step, recorder = _trained(asked_at=3)
    assert step == 5 and recorder.saved == [5] and recorder.logged == [1, 4, 5]


def test_who_is_asked_at_the_end_ends_as_ever():
    step, recorder = _trained(asked_at=9)
    assert step == 10 and recorder.saved == [8, 10]


def test_an_old_checkpoint_is_followed_by_a_new_one_after_one_more_step(monkeypatch):
    monkeypatch.setattr(loop, "FIRST_SAVE_MINUTES", 0)
    looks = itertools.count()
    clock = SimpleNamespace(monotonic=lambda: 60 * next(looks), perf_counter=time.perf_counter)  # a minute a look
    monkeypatch.setattr(loop, "time", clock)
    _, recorder = _trained(asked_at=99, checkpoint_every_minutes=2.5)
    assert recorder.saved == [2, 5, 8, 10]  # look 0 begins, 1 is over; 2 begins, 3 and 4 are not, 5 is over; ...
    _, recorder = _trained(asked_at=99, checkpoint_every_minutes=None)
    assert recorder.saved == [8, 10]


@pytest.mark.heavy
def test_all_ranks_save_when_the_clock_of_the_first_says_so():
    run_on_ranks(2, _check_all_save)


def _check_all_save() -> None:
    loop.FIRST_SAVE_MINUTES, before = 0, loop.FIRST_SAVE_MINUTES
    _, recorder = _trained(asked_at=99, checkpoint_every_minutes=1e9)
    loop.FIRST_SAVE_MINUTES = before
    assert recorder.saved == [2, 8, 10]


@pytest.mark.heavy
def test_all_ranks_leave_at_the_same_step_when_one_is_asked():
    run_on_ranks(2, _check_all_leave)


def _check_all_leave() -> None:
    step, recorder = _trained(asked_at=2, asked_rank=1)
    assert step == 5 and recorder.saved == [5]


def _folder(tmp_path) -> RunFolder:
    folder = RunFolder(str(tmp_path))
    folder.log_event("start", 0, workers=4)
    folder.log_event("checkpoint", 8, uri="", seconds=1, stall_ms=1)
    folder.log_metrics(11, {"loss/total": 1.0})
    return folder


def test_a_first_attempt_has_none_before_it(tmp_path):
    assert attempt_before(RunFolder(str(tmp_path))) is None


def test_a_change_counts_the_steps_since_the_checkpoint_and_all_seconds(tmp_path):
    folder = _folder(tmp_path)
    folder.log_event("stop", None, cause="lost: rank 3", planned=False)
    restart, before = Restart(), attempt_before(folder)
    assert before and (before.workers, before.step, before.cause) == (4, 11, "lost: rank 3")
    with restart.part("load"):
        pass
    change = restart.change(before, resumed_from=8, workers=2)
    assert (change["from"], change["to"], change["steps_recomputed"]) == (4, 2, 3)
    assert set(change["seconds"]) == {"detect", "restart", "load", "step"}
    assert sum(change["seconds"].values()) == pytest.approx(change["seconds_lost"], abs=0.01)


def test_where_nobody_told_of_the_end_the_driver_was_lost(tmp_path):
    before = attempt_before(_folder(tmp_path))
    assert before and before.cause == "the driver was lost"


def test_a_run_that_ended_was_started_again(tmp_path):
    folder = _folder(tmp_path)
    folder.log_event("end", None, status="FAILED")
    before = attempt_before(folder)
    assert before and before.cause == "started again after the run ended (FAILED)"
