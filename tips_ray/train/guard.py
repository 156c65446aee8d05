"""What follows when a step's loss or gradient is not finite: it is saved for replay, then the run stops or skips it.

A saved step is `bad_steps/step-XXXXXXXX/` of the run folder, with all that is needed to do it again. Its state is an
ordinary checkpoint of the step before. `bad_step.json` is written last; a folder without it is ignored.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from tips_ray import storage
from tips_ray.batch import Batch
from tips_ray.config import RunConfig
from tips_ray.distributed import gather_objects, rank, world_size
from tips_ray.runs.checkpoint import CheckpointInfo, checkpoint_at
from tips_ray.train.checkpointing import save_checkpoint
from tips_ray.train.graceful_stop import Agreement
from tips_ray.train.health import Health
from tips_ray.train.state import TrainState
from tips_ray.train.step import BadStepError, LaunchedStep, launch_step, new_halt

FACTS = "bad_step.json"
Rows = Mapping[str, Sequence[Any]]
"""`sample_id` and `key` of a micro-batch's images."""


class BadStepRecorder(Protocol):
    """Where bad steps are saved."""

    def save_bad_step(self, state: TrainState, micro_batches: Sequence[Batch], facts: dict[str, Any]) -> str:
        """Save the state before the step and the batch of every rank; every rank calls it. Returns the URI."""
        ...


class Guard:
    """Steps of a run, each judged on all ranks before its update, on the device; the host learns of it a step later.

    After a bad step the device changes nothing until the host has heard of it. By then it has launched one more step,
    which is done again if the bad one is skipped. So the batch of a step is kept until the step after it is launched.
    """

    def __init__(
        self, config: RunConfig, recorder: BadStepRecorder, agreement: Agreement, health: Health | None = None
    ) -> None:
        self.config, self.recorder, self.agreement, self.health = config, recorder, agreement, health
        self._halted: Tensor | None = None
        self._unjudged: LaunchedStep | None = None

    def launch(self, state: TrainState, micro_batches: Sequence[Batch]) -> None:
        """Launch a step, then judge the one before it.

        Raises:
            FloatingPointError: the one before is bad and may not be skipped; all ranks raise, and the state is as
                before it.
        """
        before, self._unjudged = self._unjudged, self._launched(state, micro_batches)
        if before and not self._is_good(state, before):
            self._unjudged = self._launched(state, micro_batches)

    def settle(self, state: TrainState) -> dict[str, Tensor]:
        """Wait until the last step is done, or skipped; returns its metrics, see `LaunchedStep.metrics`.

        Raises:
            FloatingPointError: as `launch`, of the last step.
        """
        last, self._unjudged = self._unjudged, None
        assert last is not None, "no step was launched since the last wait"
        self._is_good(state, last)
        return last.metrics

    def _launched(self, state: TrainState, micro_batches: Sequence[Batch]) -> LaunchedStep:
        if self._halted is None:
            self._halted = new_halt(micro_batches)
        options = (self.config.resources.accumulate_unsharded, self.health, self.agreement)
        keep_graph = self.config.keeps_embedding_graph
        return launch_step(state, micro_batches, self.config, self._halted, *options, keep_graph)

    def _is_good(self, state: TrainState, launched: LaunchedStep) -> bool:
        """Whether a step was done; a bad one is saved and skipped, and steps may be done again."""
        try:
            launched.judge()
            return True
        except BadStepError as bad:
            state.step = launched.step
            uri = self.recorder.save_bad_step(state, launched.micro_batches, self._facts(state, bad))
            self._require_skippable(state, bad, uri)
        if self.health:
            self.health.forget()
        state.step += 1
        state.skipped_steps += 1
        assert self._halted is not None
        self._halted.zero_()
        return False

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


@dataclass(frozen=True)
class BadStep:
    """A bad step that was saved."""

    uri: str
    step: int
    """The step that was not done; the state is that of `step - 1`."""
    workers: int
    what: str
    """`loss` or `gradient`."""
    metrics: dict[str, float]
    """Means over ranks; some are not finite."""

    def checkpoint(self) -> CheckpointInfo:
        """The state before the step."""
        return checkpoint_at(storage.join(self.uri, "state"), self.step - 1)

    def read_batches(self, of_rank: int) -> tuple[list[Batch], list[Rows]]:
        """A rank's micro-batches on the host, and the ids of their images (none if they were not known)."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rank.pt")
            storage.download(storage.join(self.uri, _batches_of(of_rank)), path)
            saved = torch.load(path, weights_only=True)
        return [Batch(**tensors) for tensors in saved["micro_batches"]], saved["rows"]


def save_bad_step(
    run_uri: str,
    state: TrainState,
    micro_batches: Sequence[Batch],
    rows: Sequence[Rows],
    facts: Mapping[str, Any],
    fingerprints: dict[str, str],
) -> str:
    """Save the step that `state` was about to do; every rank calls this, and gets the URI once all is written.

    Args:
        run_uri: run folder.
        state: as before the step.
        micro_batches: this rank's.
        rows: of each of them, if known.
        facts: `step`, `what`, `metrics` and whatever else is to be recorded.
        fingerprints: of config and data.
    """
    uri = storage.join(run_uri, "bad_steps", f"step-{facts['step']:08d}")
    _save_batches(storage.join(uri, _batches_of(rank())), micro_batches, rows)
    save_checkpoint(state, storage.join(uri, "state"), fingerprints)
    if rank() == 0:
        metrics = {name: str(value) for name, value in facts["metrics"].items()}  # JSON has no infinity
        text = json.dumps({**facts, "metrics": metrics, "workers": world_size()}, indent=1)
        storage.write_text(storage.join(uri, FACTS), text)
    gather_objects(None)
    return uri


def list_bad_steps(run_uri: str) -> list[BadStep]:
    """Completely saved bad steps of a run, oldest first."""
    found = [_read_facts(uri) for uri in sorted(storage.list_folders(storage.join(run_uri, "bad_steps")))]
    return [bad_step for bad_step in found if bad_step]


def _read_facts(uri: str) -> BadStep | None:
    try:
        facts = json.loads(storage.read_text(storage.join(uri, FACTS)))
    except storage.NotFoundError:
        return None
    metrics = {name: float(value) for name, value in facts["metrics"].items()}
    return BadStep(uri, facts["step"], facts["workers"], facts["what"], metrics)


def _save_batches(uri: str, micro_batches: Sequence[Batch], rows: Sequence[Rows]) -> None:
    tensors = [{name: tensor.cpu() for name, tensor in batch.tensors().items()} for batch in micro_batches]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rank.pt")
        torch.save({"micro_batches": tensors, "rows": [dict(part) for part in rows]}, path)
        storage.upload(path, uri)


def _batches_of(of_rank: int) -> str:
    return f"rank-{of_rank:05d}.pt"
