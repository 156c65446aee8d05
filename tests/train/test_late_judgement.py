"""A step is judged on the device before its update, and the host learns of it a step later: nothing else changes."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from operator_calls import OperatorCalls
from ranks import run_on_ranks
from torch import Tensor
from toy import TOY, toy_batch
from toy_state import numbers_of

from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.distributed import rank, world_size
from tips_ray.models import text, vision
from tips_ray.train.loop import train
from tips_ray.train.optim import fill_averages
from tips_ray.train.parallelize import shard, worker_mesh
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import launch_step, new_halt

IMAGES, STEPS, NEVER = 4, 6, 1000


class _Saved:
    """A recorder that keeps the numbers of each bad step's state, and the batch that came with it."""

    def __init__(self) -> None:
        self.bad: dict[int, tuple[dict[str, Tensor], Sequence[Batch]]] = {}
        self.temperatures: dict[int, float | None] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.temperatures[step] = metrics.get("health/temperature")

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        pass

    def save_bad_step(self, state: TrainState, micro_batches: Sequence[Batch], facts: dict[str, Any]) -> str:
        assert facts["step"] == state.step + 1
        self.bad[facts["step"]] = _copied(state), micro_batches
        return "here"

    def rejects(self) -> str:
        raise AssertionError("no row of this file is bad")


def _config(log_every_steps: int, **values: Any) -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "resources": {"workers": world_size()}}
    sizes = {"global_batch_images": IMAGES * world_size(), "log_every_steps": log_every_steps}
    keys = {"guard.policy": "skip", "schedule.warmup": 0.5, "schedule.peak_lr": 1e-2}
    keys |= {key.replace("__", "."): value for key, value in values.items()}
    return override(RunConfig, {**TOY, **run, **sizes}, {"schedule.total_steps": STEPS, **keys})


def _begun(config: RunConfig) -> TrainState:
    def prepare(student, teacher):
        shard(student, teacher, worker_mesh("cpu"))

    return new_state(config, prepare=prepare if world_size() > 1 else None)


def _copied(state: TrainState) -> dict[str, Tensor]:
    if isinstance(state.optimizer, torch.optim.AdamW):
        fill_averages(state.optimizer)  # of prototypes that are still frozen
    rates = ("lr", "lr_factor", "weight_decay", "decay_factor")
    return {name: value.clone() for name, value in numbers_of(state).items() if not name.endswith(rates)}


def _stream(batches: list[Batch], bad_steps: Sequence[int]) -> Iterator[list[Batch]]:
    for place, batch in enumerate(batches):
        if place + 1 in bad_steps and rank() == world_size() - 1:
            batches[place] = replace(batch, global_crops_BCHW=batch.global_crops_BCHW * torch.inf)
        yield [batches[place]]


class _Run:
    """A run whose last rank meets an infinite image in each of `bad_steps`; every step's batch comes once."""

    def __init__(self, log_every_steps: int, bad_steps: Sequence[int] = (), until: int | None = None, **values) -> None:
        config, self.recorder = _config(log_every_steps, **values), _Saved()
        self.batches = [toy_batch(IMAGES, seed=10 * step + rank()).to("cpu", torch.float32) for step in range(STEPS)]
        self.state, self.words = _begun(config), ""
        try:
            train(self.state, _stream(self.batches, bad_steps), config, self.recorder, until_step=until)
        except FloatingPointError as error:
            self.words = str(error)


def _check_skipped(bad_steps: Sequence[int], values: dict[str, Any]) -> None:
    at_once, late = _Run(1, bad_steps, **values), _Run(NEVER, bad_steps, **values)
    for run in (at_once, late):
        assert (run.state.step, run.state.skipped_steps, run.words) == (STEPS, len(bad_steps), "")
        assert list(run.recorder.bad) == list(bad_steps)
    torch.testing.assert_close(_copied(late.state), _copied(at_once.state), rtol=0, atol=0)
    for step, (numbers, micro_batches) in late.recorder.bad.items():
        torch.testing.assert_close(numbers, at_once.recorder.bad[step][0], rtol=0, atol=0)
        assert micro_batches[0] is late.batches[step - 1]
        temperature = "student.log_temperature"
        assert torch.equal(_copied(late.state)[temperature], numbers[temperature]) == (bad_steps[-1] == STEPS)
    assert late.recorder.temperatures[STEPS] == at_once.recorder.temperatures[STEPS]


def _check_stopped(bad_step: int, values: dict[str, Any]) -> None:
    before = _copied(_Run(NEVER, until=bad_step - 1, **values).state)
    late = _Run(NEVER, [bad_step, bad_step + 1], guard__policy="stop", **values)
    assert late.words.startswith(f"step {bad_step} is bad, ") and "nothing was updated" in late.words
    assert (late.state.step, late.state.skipped_steps, list(late.recorder.bad)) == (bad_step - 1, 0, [bad_step])
    torch.testing.assert_close(_copied(late.state), before, rtol=0, atol=0)
    torch.testing.assert_close(late.recorder.bad[bad_step][0], before, rtol=0, atol=0)


SKIPPED = [
    ([3], {}),
    ([3, 4], {}),
    ([5, 6], {"optimizer__name": "adafactor"}),
    ([2], {"objective__teacher": "ema_heads"}),
]


@pytest.mark.parametrize(("bad_steps", "values"), SKIPPED)
def test_a_run_that_hears_of_bad_steps_late_is_the_run_that_hears_at_once(bad_steps, values):
    _check_skipped(bad_steps, values)


@pytest.mark.parametrize("name", ["adamw", "adafactor"])
def test_a_run_that_stops_late_stops_with_the_state_before_the_bad_step(name):
    _check_stopped(3, {"optimizer__name": name})


@pytest.mark.heavy
def test_all_ranks_hear_late_of_the_bad_step_of_one():
    run_on_ranks(2, _check_on_ranks)


def _check_on_ranks() -> None:
    _check_skipped([3, 4], {})
    _check_stopped(3, {})


def test_the_whole_state_of_a_halted_step_stays_whatever_the_weights_hold():
    """A teacher or centre that is multiplied with the flag would take NaN from a student that has it."""
    config = _config(NEVER)
    state, batch = _begun(config), toy_batch(IMAGES).to("cpu", torch.float32)
    launch_step(state, [batch], config, halted := new_halt([batch]))
    assert halted.item() == 0
    next(state.student.image.blocks[0].parameters()).data[0] = torch.nan
    before = _copied(state)
    launch_step(state, [batch], config, halted)
    launch_step(state, [toy_batch(IMAGES, seed=1).to("cpu", torch.float32)], config, halted)
    assert halted.item() == 1 and state.step == 3
    torch.testing.assert_close(_copied(state), before, rtol=0, atol=0, equal_nan=True)


def test_launching_a_step_reads_no_number_on_the_host(monkeypatch):
    def refused(*args, **kwargs):
        raise AssertionError("the step waits for the device")

    config = _config(NEVER)
    state, batch = _begun(config), toy_batch(IMAGES).to("cpu", torch.float32)
    halted = new_halt([batch])
    launch_step(state, [batch], config, halted)
    monkeypatch.setattr(vision, "_check_images", lambda images, px: [side // px for side in images.shape[2:]])
    monkeypatch.setattr(text.TextEncoder, "_check", lambda self, ids: None)  # these two read values on CPUs alone
    for name in ("item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero"):
        monkeypatch.setattr(Tensor, name, refused)
    with OperatorCalls() as calls:
        launch_step(state, [batch], config, halted)
    assert calls.counts[torch.ops.aten._local_scalar_dense.default] == 0
