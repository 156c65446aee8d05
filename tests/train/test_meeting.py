"""Ranks wait for each other's data where waiting is no fault; collectives of training fail after a short time."""

import time
from collections.abc import Iterator

import pytest
import torch
from ranks import run_on_ranks
from toy import toy_batch, toy_config
from toy_state import toy_state

from tips_ray import distributed
from tips_ray.batch import Batch
from tips_ray.distributed import aborted_on_error, background_group, limit_waits, meeting, rank
from tips_ray.train.graceful_stop import GracefulStop
from tips_ray.train.step import train_step

SHORT_SECONDS, DELAY_SECONDS = 3, 6


def _steps_of_a_late_rank() -> Iterator[list[Batch]]:
    """The second step's data come late on rank 1."""
    for step in range(2):
        if (rank(), step) == (1, 1):
            time.sleep(DELAY_SECONDS)
        yield [toy_batch(4, seed=step).to("cpu", torch.float32)]


def _train_with_a_late_rank(meets: bool) -> int:
    waiting, state, steps = background_group(), toy_state(), _steps_of_a_late_rank()
    for micro_batches in meeting(steps, waiting) if meets else steps:
        train_step(state, micro_batches, toy_config())
        limit_waits("cpu", SHORT_SECONDS)  # the first step takes its time
    return state.step


@pytest.mark.heavy
def test_a_rank_whose_data_come_late_does_not_end_the_run():
    assert run_on_ranks(2, _train_with_a_late_rank, True) == [2, 2]


@pytest.mark.slow
def test_without_a_meeting_it_does():
    with pytest.raises(RuntimeError, match="rank 0: .*(?i:timed? ?out)"):
        run_on_ranks(2, _train_with_a_late_rank, False, fresh=True)


@pytest.mark.parametrize(
    ("device", "error", "is_aborted"),
    [("cuda", ValueError(), True), ("cuda", GracefulStop(), False), ("cpu", ValueError(), False)],
)
def test_an_error_on_a_gpu_aborts_the_groups_that_other_ranks_may_wait_in(monkeypatch, device, error, is_aborted):
    aborted = []
    monkeypatch.setattr(distributed.distributed_c10d, "_abort_process_group", lambda: aborted.append(True))
    monkeypatch.setattr(distributed.dist, "is_initialized", lambda: True)
    with pytest.raises(type(error)), aborted_on_error(torch.device(device), planned=(GracefulStop,)):
        raise error
    assert bool(aborted) == is_aborted
