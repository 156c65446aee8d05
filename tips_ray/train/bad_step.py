"""A bad step in the run folder, all that is needed to do it again: `bad_steps/step-XXXXXXXX/`.

Its state is an ordinary checkpoint of the step before; `bad_step.json`, written last, makes it exist.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from tips_ray import storage
from tips_ray.batch import Batch
from tips_ray.checkpoint_io import save_checkpoint
from tips_ray.distributed import gather_objects, rank, world_size
from tips_ray.runs.checkpoint import CheckpointInfo, checkpoint_at
from tips_ray.train.state import TrainState

FACTS = "bad_step.json"
Rows = Mapping[str, Sequence[Any]]
"""`sample_id` and `key` of a micro-batch's images."""


@dataclass(frozen=True)
class BadStep:
    """One that was saved."""

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
        """A rank's micro-batches on the host, and what their images are called (none where nobody knew)."""
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
    """Save the step that `state` was about to do; every rank calls this, and gets the URI once all is there.

    Args:
        run_uri: run folder.
        state: as before the step.
        micro_batches: this rank's.
        rows: of each of them, if known.
        facts: `step`, `what`, `metrics` and what else is to be told.
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
    """Those of a run that are whole, oldest first."""
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
    tensors = [{field.name: getattr(batch, field.name).cpu() for field in fields(batch)} for batch in micro_batches]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "rank.pt")
        torch.save({"micro_batches": tensors, "rows": [dict(part) for part in rows]}, path)
        storage.upload(path, uri)


def _batches_of(of_rank: int) -> str:
    return f"rank-{of_rank:05d}.pt"
