"""What a worker's stream becomes on its way to the step: micro-batches of its own memory, timed without the copy."""

import gc
import itertools
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from toy_run import tiny_run

from tips_ray.config import RunConfig, override
from tips_ray.data.collate import batch_from
from tips_ray.train import feed
from tips_ray.train.feed import COLLECT_EVERY_STEPS, Feed, Timed, collected_together, fed_steps
from tips_ray.train.micro_batch import noise

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.fixture
def config(tmp_path) -> RunConfig:
    keys = {"global_batch_images": 4, "micro_batch_images": 2, "resources.workers": 1}
    return override(RunConfig, tiny_run(tmp_path, "x").model_dump(), keys)


def test_a_batch_from_the_stream_keeps_none_of_its_memory(config):
    """Blocks of an object store, and shared memory, are free again while the batch lives: for a step longer."""
    batch = batch_from(noise(config, 2))
    fed = Feed(CPU)(batch)
    for field in fields(batch):
        here, there = getattr(fed, field.name), getattr(batch, field.name)
        assert here.untyped_storage().data_ptr() != there.untyped_storage().data_ptr()
        torch.testing.assert_close(here.double(), there.double() / (255 if there.dtype == torch.uint8 else 1))


def test_to_a_gpu_a_batch_is_copied_from_pinned_memory_beside_the_step(config, monkeypatch):
    """Training waits for the copy, the host for nothing, and the memory stays until training is done with it."""
    done: list[Any] = []

    class Stream:
        def __init__(self, name):
            self.name = name

        def wait_stream(self, other):
            done.append(f"{self.name} waits for {other.name}")

        def __enter__(self):
            done.append(f"in {self.name}")

        def __exit__(self, *_):
            done.append(f"out of {self.name}")

    def pinned(tensor):
        done.append("pinned")
        tensor.is_now_pinned = True
        return tensor

    def to(tensor, device, own=torch.Tensor.to, **options):
        if isinstance(device, torch.device):  # not of a dtype
            assert tensor.is_now_pinned and options["non_blocking"]
            done.append("copied")
        return own(tensor, device, **options)

    monkeypatch.setattr(torch.cuda, "Stream", lambda device: Stream("side"))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("training"))
    monkeypatch.setattr(torch.Tensor, "record_stream", lambda tensor, stream: done.append(f"kept for {stream.name}"))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pinned)
    monkeypatch.setattr(torch.Tensor, "to", to)
    batch = batch_from(noise(config, 2))
    with FakeTensorMode(allow_non_fake_inputs=True):
        fed = Feed(GPU)(batch)
    tensors = len(fed.tensors())
    assert {tensor.device for tensor in fed.tensors().values()} == {GPU}
    copies = ["in side", *["copied"] * tensors, "out of side"]
    assert done == [*["pinned"] * tensors, *copies, "training waits for side", *["kept for training"] * tensors]


def test_the_wait_for_data_is_that_for_the_stream_and_not_for_the_copy(config, monkeypatch):
    now = itertools.count()  # every look at the clock is a second after the one before
    monkeypatch.setattr(feed.time, "perf_counter", lambda: next(now))
    stream = Timed({**noise(config, 2), "step": np.full(2, number // 2)} for number in range(4))
    done, noted = [], []

    def copied(batch):
        feed.time.perf_counter()
        return batch

    steps = fed_steps(lambda: len(done), config, stream, copied, noted.append, lambda: None)
    for micro_batches in steps:
        assert len(micro_batches) == 2
        done.append(micro_batches)
    assert (len(done), len(noted)) == (2, 4)
    assert stream.seconds == 5  # four micro-batches and the end, a second each


def test_a_stream_that_is_at_another_step_than_the_state_is_refused(config):
    stream = Timed(iter([{**noise(config, 2), "step": np.array([3, 3])}]))
    with pytest.raises(RuntimeError, match="the data stream brought step 3, the state is at 2"):
        next(fed_steps(lambda: 2, config, stream, lambda batch: batch, lambda columns: None, lambda: None))


def test_garbage_is_collected_after_the_first_step_and_then_in_the_same_steps_everywhere(monkeypatch):
    collected = []
    monkeypatch.setattr(gc, "collect", lambda *of: collected.append(step))
    frozen = gc.get_freeze_count()
    with pytest.raises(ValueError), collected_together() as collect:
        for step in range(7, 2 * COLLECT_EVERY_STEPS + 2):  # as after a restart from step 6
            collect(step)
            assert not gc.isenabled()
        assert gc.get_freeze_count() > frozen
        raise ValueError
    assert collected == [7, COLLECT_EVERY_STEPS, 2 * COLLECT_EVERY_STEPS]
    assert gc.isenabled() and gc.get_freeze_count() == 0
