"""What follows when a step's loss or gradient is not finite: it is saved for replay, then the run stops or skips it."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, Protocol

from torch import Tensor

from tips_ray.batch import Batch
from tips_ray.config import RunConfig
from tips_ray.distributed import gather_objects
from tips_ray.train.graceful_stop import Agreement
from tips_ray.train.health import Health
from tips_ray.train.state import TrainState
from tips_ray.train.step import BadStepError, train_step


class BadStepSink(Protocol):
    """Where bad steps are saved."""

    def save_bad_step(self, state: TrainState, micro_batches: Sequence[Batch], facts: dict[str, Any]) -> str:
        """Save the state before the step and the batch of every rank; every rank calls it. Returns the URI."""
        ...


class Guard:
    """Steps of a run, each judged on all ranks before its update."""

    def __init__(self, config: RunConfig, sink: BadStepSink, agreement: Agreement) -> None:
        self.config, self.sink, self.agreement = config, sink, agreement

    def step(self, state: TrainState, micro_batches: Sequence[Batch], health: Health) -> dict[str, Tensor]:
        """One step, done or skipped; returns what `train_step` does.

        Raises:
            FloatingPointError: the step is bad and may not be skipped; all ranks raise, and the state is as before it.
        """
        unsharded = self.config.resources.accumulate_unsharded
        try:
            return train_step(state, micro_batches, self.config, unsharded, health, self.agreement)
        except BadStepError as bad:
            uri = self.sink.save_bad_step(state, micro_batches, self._facts(state, bad))
            self._require_skippable(state, bad, uri)
            health.forget()
            state.step += 1
            state.skipped_steps += 1
            return bad.metrics

    def _facts(self, state: TrainState, bad: BadStepError) -> dict[str, Any]:
        here = isfinite(bad.metrics["loss/total"].item())
        ranks = [rank for rank, is_finite in enumerate(gather_objects(here)) if not is_finite]
        return {
            "step": state.step + 1,
            "what": "loss" if ranks else "gradient",
            "ranks": ranks,
            "policy": self.config.guard.policy,
            "metrics": bad.means,
        }

    def _require_skippable(self, state: TrainState, bad: BadStepError, uri: str) -> None:
        guard = self.config.guard
        if guard.policy == "skip" and state.skipped_steps < guard.max_skipped:
            return
        cure = "guard.policy=skip leaves such steps out"
        if guard.policy == "skip":
            cure = f"guard.max_skipped ({guard.max_skipped}) steps are skipped already, raise it to skip more"
        raise FloatingPointError(
            f"step {state.step + 1} is bad, {bad}, and nothing was updated; its state and batch are in {uri}: "
            f"`tips-ray replay` of the run names the first bad tensor; {cure}"
        ) from None
