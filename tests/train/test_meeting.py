"""Ranks wait for each other's data where waiting is no fault; collectives of training fail after a short time."""

import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from ranks import run_on_ranks
from torch.distributed import distributed_c10d
from toy import toy_batch, toy_config
from toy_run import tiny_run, toy_job
from toy_state import toy_state

from tips_ray import distributed
from tips_ray.batch import Batch
from tips_ray.distributed import aborted_on_error, background_group, limit_waits, meeting, rank
from tips_ray.launch import on_ranks, on_ray
from tips_ray.train import worker_loop
from tips_ray.train.feed import Timed
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
        limit_waits("cpu", SHORT_SECONDS, [distributed_c10d._get_default_group()])  # the first step takes its time
    return state.step


@pytest.mark.heavy
def test_a_rank_whose_data_come_late_does_not_end_the_run():
    assert run_on_ranks(2, _train_with_a_late_rank, True) == [2, 2]


@pytest.mark.slow
def test_without_a_meeting_it_does():
    with pytest.raises(RuntimeError, match="rank 0: .*(?i:timed? ?out)"):
        run_on_ranks(2, _train_with_a_late_rank, False, fresh=True)


@pytest.mark.parametrize(("device", "expected"), [("cpu", ["step"] * 2), ("cuda", ["met", "step", 300] * 2)])
def test_ranks_with_gpus_meet_before_each_step_and_wait_shortly_after_the_first(monkeypatch, device, expected):
    done = []

    def fed(step, config, stream, feed, note_rows, note_step):
        for number in range(2):
            yield number
            note_step()

    def met(items, note_wait):
        for item in items:
            done.append("met")
            note_wait(1.5)
            yield item

    def train(state, steps, config, recorder, why, until_step, waited):
        for _ in steps:
            done.append("step")
        done.append(waited())

    for name, stand_in in {"fed_steps": fed, "meeting": met, "train": train}.items():
        monkeypatch.setattr(worker_loop, name, stand_in)
    monkeypatch.setattr(worker_loop, "limit_waits", lambda kind, seconds: done.append(seconds))
    feed: Any = SimpleNamespace(device=torch.device(device))
    recorder: Any = SimpleNamespace(note_rows=None, note_step=lambda: None)
    state: Any = SimpleNamespace(step=0)
    config: Any = None
    worker_loop._train(state, config, feed, Timed(iter([])), recorder, str, None)
    assert done == [*expected, 3.0 if device == "cuda" else 0.0]


@pytest.mark.parametrize(("gpus", "backend"), [(0, "gloo"), (1, "cpu:gloo,cuda:nccl")])
def test_ranks_wait_on_cpus_and_beyond_the_wait_for_captions(tmp_path, monkeypatch, gpus, backend):
    keys = {"resources__gpus_per_worker": gpus, "captions__wait_seconds": 5000, "checkpoint_patience_seconds": 60}
    run = toy_job(tiny_run(tmp_path, "unused", **keys), str(tmp_path / "tiny"))
    made, placed = [], []
    monkeypatch.setattr(on_ranks.dist, "init_process_group", lambda backend, **given: made.append((backend, given)))
    monkeypatch.setattr(torch.cuda, "set_device", placed.append)
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "backend:native")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with on_ranks._process_group(run.config) as device:
        assert (made[0][0], made[0][1]["timeout"].total_seconds()) == (backend, 6800)
        assert (str(device), placed) == (("cuda:1", [device]) if gpus else ("cpu", []))
    monkeypatch.setattr(on_ray, "ElasticTrainer", lambda *of, **given: made.append(given["torch_config"]))
    on_ray._ray_trainer(run, None)
    assert (made[1].backend, made[1].timeout_s) == (backend, 6800)


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
