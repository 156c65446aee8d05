"""The training loop: one rank's view, without Ray. G images per step over all ranks."""

import time
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Protocol

from tips_ray.batch import Batch
from tips_ray.config import RunConfig
from tips_ray.distributed import mean_over_ranks
from tips_ray.train.state import TrainState
from tips_ray.train.step import train_step


class Sink(Protocol):
    """Where results go: Ray Train, MLflow and the run folder in a job, a list in a test."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def save(self, state: TrainState, metrics: dict[str, float]) -> None: ...


def train(state: TrainState, steps: Iterator[Sequence[Batch]], config: RunConfig, sink: Sink) -> None:
    """Advance `state` in place to `config.schedule.total_steps`.

    Args:
        state: where to start from; its step says how far it is.
        steps: this rank's micro-batches of each step that is left, on the state's device.
        config: of the run.
        sink: every rank calls it equally often.

    Raises:
        FloatingPointError: a logged metric is not finite. The mean over ranks is tested, so all ranks raise at the same
            step and none is left waiting in a collective.
    """
    pace = _Pace(config.global_batch_images)
    total_steps = config.schedule.total_steps
    while state.step < total_steps:
        micro_batches = pace.wait_for(steps)
        metrics = train_step(state, micro_batches, config)
        should_save = state.step == total_steps or state.step % config.checkpoint_every_steps == 0
        if should_save or state.step == 1 or state.step % config.log_every_steps == 0:
            means = mean_over_ranks(metrics)  # the only wait for the device
            if not all(map(isfinite, means.values())):
                raise FloatingPointError(f"non-finite metric at step {state.step}: {means}")
            means |= pace.lap()
            sink.log(state.step, means)
            if should_save:
                sink.save(state, means)


class _Pace:
    """Images per second and the share of time spent waiting for data, between two laps."""

    def __init__(self, global_batch_images: int) -> None:
        self.global_batch_images = global_batch_images
        self._restart()

    def wait_for(self, steps: Iterator[Sequence[Batch]]) -> Sequence[Batch]:
        before = time.perf_counter()
        micro_batches = next(steps)
        self.waited_seconds += time.perf_counter() - before
        self.steps += 1
        return micro_batches

    def lap(self) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        rate, waiting = self.steps * self.global_batch_images / seconds, self.waited_seconds / seconds
        self._restart()
        return {"images_per_second": rate, "data_wait_share": waiting}

    def _restart(self) -> None:
        self.started, self.waited_seconds, self.steps = time.perf_counter(), 0.0, 0
