"""Columns of a stream -> micro-batches on the device, step by step, copied while the device does the step before."""

import gc
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from tips_ray.batch import Batch
from tips_ray.config import RunConfig
from tips_ray.data.collate import batch_from
from tips_ray.distributed import world_size

COLLECT_EVERY_STEPS = 100
"""Steps between two garbage collections: one takes up to 0.1 s, in which all other ranks wait for this one."""
Columns = Mapping[str, Any]
"""A micro-batch as columns of training rows."""


class Timed(Iterator[Columns]):
    """A stream that knows how long its consumer has waited, for it and for the streams of other ranks."""

    def __init__(self, stream: Iterator[Columns]) -> None:
        self._stream, self.seconds = stream, 0.0

    def __next__(self) -> Columns:
        before = time.perf_counter()
        try:
            return next(self._stream)
        finally:
            self.add(time.perf_counter() - before)

    def add(self, seconds: float) -> None:
        """Count a wait for others."""
        self.seconds += seconds


class Feed:
    """Copies micro-batches to a device; to an accelerator from pinned memory, on a stream of its own.

    So neither host nor device waits for a copy: it runs beside the step before. torch keeps pinned memory and uses it
    again once a copy is done.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._beside = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, batch: Batch) -> Batch:
        """`batch.to(device)`, without any memory of `batch`, which its owner may use again."""
        if self._beside is None:
            return batch.to(self.device, copy=True)
        pinned = batch.pinned()
        with torch.cuda.stream(self._beside):
            moved = pinned.to(self.device)
        training = torch.cuda.current_stream(self.device)
        training.wait_stream(self._beside)
        for tensor in moved.tensors().values():
            tensor.record_stream(training)
        return moved


def fed_steps(
    step: Callable[[], int],
    config: RunConfig,
    stream: Iterator[Columns],
    feed: Callable[[Batch], Batch],
    note_rows: Callable[[Columns], None],
    note_step: Callable[[], None],
) -> Iterator[Sequence[Batch]]:
    """This worker's micro-batches, step by step.

    Args:
        step: the state's.
        config: of the run.
        stream: columns of one micro-batch after the other.
        feed: copies a micro-batch to the device.
        note_rows: called with the columns of every micro-batch.
        note_step: called once the step of the micro-batches just given is launched.

    Raises:
        RuntimeError: the stream is at another step than the state: dataset and checkpoint disagree.
    """
    passes = config.global_batch_images // world_size() // config.images_per_pass
    micro_batches: list[Batch] = []
    for columns in stream:
        if (columns["step"] != step()).any():
            raise RuntimeError(f"the data stream brought step {columns['step'][0]}, the state is at {step()}")
        note_rows(columns)
        micro_batches.append(feed(batch_from(columns)))
        if len(micro_batches) == passes:
            yield micro_batches
            note_step()
            micro_batches = []


@contextmanager
def collected_together() -> Iterator[Callable[[int], None]]:
    """Inside, Python collects garbage only when the yielded function is called with a step that is due.

    All ranks then collect in the same steps. What is there after the first step stays for the whole run and is not
    looked at again.
    """
    was_enabled, is_first = gc.isenabled(), True

    def collect(step: int) -> None:
        nonlocal is_first
        if is_first or step % COLLECT_EVERY_STEPS == 0:
            gc.collect()
        if is_first:
            gc.freeze()
        is_first = False

    gc.disable()
    try:
        yield collect
    finally:
        gc.unfreeze()
        if was_enabled:
            gc.enable()
