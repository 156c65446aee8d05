"""The training loop: one rank's view, without Ray. G images per step over all ranks."""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from tips_ray.batch import Batch
from tips_ray.config import RunConfig
from tips_ray.distributed import mean_over_ranks, rank, world_size
from tips_ray.runs.run import last_step_of
from tips_ray.train.collapse import CollapseJudge
from tips_ray.train.flops import Utilization
from tips_ray.train.graceful_stop import Agreement
from tips_ray.train.guard import BadStepRecorder, Guard
from tips_ray.train.health import Health
from tips_ray.train.state import TrainState

FIRST_SAVE_MINUTES = 1.0
"""Of each start: a loss in the first minutes is likely, and without a checkpoint all is done again."""
RANK_EVERY_LINES = 10
"""Logged steps from one effective rank to the next: its eigenvalues take a GPU 0.1 s, in which it does no step."""
FEW_ROWS = 1_000
"""The share of bad rows among fewer than these says little about a long run."""


class Recorder(BadStepRecorder, Protocol):
    """Where results go: Ray Train, MLflow and the run folder in a job, a list in a test."""

    def log(self, step: int, metrics: dict[str, float]) -> None: ...

    def save(self, state: TrainState, metrics: dict[str, float]) -> None: ...

    def rejects(self) -> str:
        """A sentence about the bad rows so far: the commonest reasons, an example, where the table is."""
        ...


def train(
    state: TrainState,
    steps: Iterator[Sequence[Batch]],
    config: RunConfig,
    recorder: Recorder,
    asked: Callable[[], str] = lambda: "",
    until_step: int | None = None,
    waited: Callable[[], float] | None = None,
) -> None:
    """Advance `state` in place to `config.schedule.total_steps`, or until a rank is asked to leave.

    The host launches a step while the device does the one before, and waits for the device in logged steps alone. So
    ranks learn at the next logged step, or a step later, that one was asked; all then do one more step together, which
    is logged and saved, and return. The last step is saved as well.

    All judgements are from means over ranks, so that all ranks raise at the same step and none is left waiting in a
    collective.

    Args:
        state: start of training; its step is the first one to do.
        steps: this rank's micro-batches of each remaining step, on the state's device.
        config: of the run.
        recorder: every rank calls it equally often.
        asked: why this rank should leave, empty while it should not; called in every step.
        until_step: optimizer steps after which to return although more are left; None: none are left.
        waited: seconds for which `steps` has waited for data so far; None: all the time that `steps` takes.

    Raises:
        FloatingPointError: loss or gradient norm of a step is not finite, and `guard` does not skip it.
        ValueError: more than `data.max_bad_fraction` of the rows so far were bad, or a `CollapseError`.
    """
    throughput, bad_rows = _Throughput(config, waited), _BadRows(state.bad_rows, config)
    age, is_leaving = _CheckpointAge(config), False
    last = last_step_of(config, until_step)
    agreement = Agreement(asked, age.is_over)
    health, collapse = Health(config.objective), CollapseJudge(config)
    guard = Guard(config, recorder, agreement, health)
    while state.step < last and not is_leaving:
        micro_batches = throughput.next_of(steps)
        is_leaving = agreement.is_leaving
        is_logged, is_saved = _due(state.step + 1, config, is_leaving or agreement.is_saving or state.step + 1 == last)
        if is_saved:
            age.restart()  # before the ranks vote again
        health.expect(is_logged, with_rank=_has_rank(state.step + 1, config))
        bad_rows.count(micro_batches)
        guard.launch(state, micro_batches)
        if is_logged:
            metrics = guard.settle(state)
            means = mean_over_ranks({**metrics, "data/bad_fraction": bad_rows.here})
            state.bad_rows = bad_rows.add(means["data/bad_fraction"])
            means |= {"data/bad_fraction": bad_rows.fraction(state.step), "guard/skipped": state.skipped_steps}
            means |= health.metrics(state.centers, means) | throughput.lap(micro_batches[0])
            recorder.log(state.step, means)
            if bad_rows.are_too_many(state.step):
                raise ValueError(f"{bad_rows.sentence(state.step)}; {recorder.rejects()}")
            collapse.judge(state.step, means)
            if is_saved:
                recorder.save(state, means)


def _due(step: int, config: RunConfig, is_agreed: bool) -> tuple[bool, bool]:
    """Whether `step` is logged, and saved; what is saved is logged too."""
    is_saved = is_agreed or step % config.checkpoint_every_steps == 0
    return is_saved or step == 1 or step % config.log_every_steps == 0, is_saved


def _has_rank(step: int, config: RunConfig) -> bool:
    """Whether the line of `step` has effective ranks; a function of the step, so that a resumed run has the same."""
    ends = step in (1, config.schedule.total_steps)
    return ends or step % (config.log_every_steps * RANK_EVERY_LINES) == 0


class _CheckpointAge:
    """Time since the last checkpoint of this start, by the clock of rank 0; other ranks ask for none."""

    def __init__(self, config: RunConfig) -> None:
        self.minutes = config.checkpoint_every_minutes if rank() == 0 else None
        self.ends = time.monotonic() + 60 * min(FIRST_SAVE_MINUTES, self.minutes or 0)

    def is_over(self) -> bool:
        return self.minutes is not None and time.monotonic() > self.ends

    def restart(self) -> None:
        self.ends = time.monotonic() + 60 * (self.minutes or 0)


class _BadRows:
    """Invalid rows since the beginning of the run, over all ranks; this rank's new ones are counted on the device."""

    def __init__(self, known: int, config: RunConfig) -> None:
        self.known, self.config = known, config
        self.here = torch.zeros(())

    def count(self, micro_batches: Sequence[Batch]) -> None:
        invalid: list[Tensor] = [(~batch.valid_B).sum() for batch in micro_batches]
        self.here = self.here.to(invalid[0].device) + torch.stack(invalid).sum()

    def add(self, mean_over_ranks: float) -> int:
        """Add the new rows of all ranks; returns the total."""
        self.known += round(mean_over_ranks * world_size())
        self.here = torch.zeros_like(self.here)
        return self.known

    def fraction(self, step: int) -> float:
        return self.known / (step * self.config.global_batch_images)

    def are_too_many(self, step: int) -> bool:
        """The rule of `data.max_bad_fraction`."""
        steps_of_few = min(FEW_ROWS / self.config.global_batch_images, self.config.schedule.total_steps)
        judged = max(step, steps_of_few) * self.config.global_batch_images
        return self.known > self.config.data.max_bad_fraction * judged

    def sentence(self, step: int) -> str:
        rows = step * self.config.global_batch_images
        return (
            f"{self.known} of {rows} rows up to step {step} are bad ({self.fraction(step):.1%}), more than "
            f"data.max_bad_fraction ({self.config.data.max_bad_fraction:g}) allows; raise it to go on with them"
        )


class _Throughput:
    """Images per second, MFU and the share of time spent waiting for data, between two laps."""

    def __init__(self, config: RunConfig, waited: Callable[[], float] | None) -> None:
        self.global_batch_images, self.utilization = config.global_batch_images, Utilization(config)
        self._taken_seconds = 0.0
        self._waited = waited or (lambda: self._taken_seconds)
        self._restart()

    def next_of(self, steps: Iterator[Sequence[Batch]]) -> Sequence[Batch]:
        before = time.perf_counter()
        micro_batches = next(steps)
        self._taken_seconds += time.perf_counter() - before
        self.steps += 1
        return micro_batches

    def lap(self, batch: Batch) -> dict[str, float]:
        seconds = time.perf_counter() - self.started
        rate = self.steps * self.global_batch_images / seconds
        waiting = (self._waited() - self._waited_before) / seconds
        mfu = self.utilization.metrics(batch.valid_B.device, batch, rate)
        self._restart()
        return {"images_per_second": rate, "data_wait_share": waiting, **mfu}

    def _restart(self) -> None:
        self.started, self._waited_before, self.steps = time.perf_counter(), self._waited(), 0
