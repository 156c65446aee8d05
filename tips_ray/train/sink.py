"""Where a run's results go: run folder, MLflow and checkpoints, without Ray."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tips_ray import storage
from tips_ray.batch import Batch
from tips_ray.config import RunConfig
from tips_ray.distributed import gather_objects, rank, world_size
from tips_ray.tracking import TrackingHandle
from tips_ray.train.bad_step import save_bad_step
from tips_ray.train.checkpoint import drop_old_checkpoints, save_checkpoint
from tips_ray.train.machine import machine, versions
from tips_ray.train.run_folder import RunFolder
from tips_ray.train.state import TrainState

Report = Callable[[str, dict[str, float]], None]
"""Told of the URI of every checkpoint that is there, with the step's metrics; every rank calls it."""


@dataclass(frozen=True)
class RunInputs:
    """What every rank of a run is told; picklable."""

    config: RunConfig
    uri: str
    """Run folder."""
    fingerprints: dict[str, str]
    tracking: TrackingHandle | None

    @property
    def checkpoints_uri(self) -> str:
        return storage.join(self.uri, "checkpoints")


class RunSink:
    """The loop's sink: metrics and events from rank 0, checkpoints and rejects from all."""

    def __init__(
        self,
        run: RunInputs,
        step: int,
        device: torch.device,
        report: Report,
        begun_from: dict[str, dict[str, Any]] | None = None,
    ) -> None:
        """`begun_from`: the weights that a new run was given, as `tips_ray.train.start.begin` tells it."""
        self.run, self.report = run, report
        self.folder = RunFolder(run.uri, rank())
        self.folder.drop_after(step)
        self.tracking = run.tracking if rank() == 0 else None
        self._samples: list[dict[str, Any]] = []
        self._rows: list[dict[str, Any]] = []  # of the step that is being done
        on, of = machine(device), versions()
        weights = {"from": begun_from} if begun_from else {}
        self._event("resume" if step else "start", step, workers=world_size(), machine=on, versions=of, **weights)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A line in the run folder, a point in MLflow."""
        samples = gather_objects(self._samples) if self.run.config.data.log_samples else []
        self._samples = []
        if rank() != 0:
            return
        self.folder.log_samples(line for lines in samples for line in lines)
        self.folder.log_metrics(step, metrics)
        self.folder.flush()
        if self.tracking:
            self.tracking.log(step, metrics)

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """A checkpoint, and word of it to whoever started the run."""
        started = time.perf_counter()
        saved = save_checkpoint(state, self.run.checkpoints_uri, self.run.fingerprints)
        if rank() == 0:
            drop_old_checkpoints(self.run.checkpoints_uri, state.step, self.run.config.keep_last)
        seconds = round(time.perf_counter() - started, 3)
        self._event("checkpoint", state.step, uri=saved.uri, seconds=seconds)
        self.report(saved.uri, {"step": state.step, **metrics})

    def save_bad_step(self, state: TrainState, micro_batches: Sequence[Batch], facts: dict[str, Any]) -> str:
        """State, batches and sample ids for `tips-ray replay`; an event."""
        uri = save_bad_step(self.run.uri, state, micro_batches, self._rows, facts, self.run.fingerprints)
        told = {name: value for name, value in facts.items() if name not in ("step", "metrics")}
        self._event("bad_step", facts["step"], **told, uri=uri)
        return uri

    def note_rows(self, columns: dict[str, Any]) -> None:
        """Lines in the rejects table for the invalid rows of a micro-batch; its samples wait for the next log."""
        if self.run.config.data.log_samples:
            places = {"positions": columns["position"].tolist(), "sample_ids": columns["sample_id"].tolist()}
            self._samples.append({"step": int(columns["step"][0]), "rank": rank(), **places})
        if self._rows and self._rows[0]["step"] != columns["step"][0]:
            self._rows = []
        called = {name: columns[name].tolist() for name in ("sample_id", "key")}
        self._rows.append({"step": int(columns["step"][0]), **called})
        bad = (~columns["valid"]).nonzero()[0]
        names = {"step": "step", "sample_id": "sample_id", "key": "key", "reason": "reject"}
        values = [columns[column][bad].tolist() for column in names.values()]  # plain ones, whatever Ray made of text
        rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        if rows:
            self.folder.log_rejects(rows)
            self.folder.flush()

    def rejects(self) -> str:
        """Read by rank 0 alone: every rank has written its bad rows before the last collective."""
        return gather_objects(self.folder.described_rejects() if rank() == 0 else None)[0]

    def note_failure(self, step: int, error: Exception) -> None:
        """An event of this rank; final: all ranks raise it alike, and would again."""
        is_final = isinstance(error, (ValueError, FloatingPointError))
        if rank() == 0 or not is_final:
            what = {"error": str(error), "type": type(error).__name__, "is_final": is_final}
            self.folder.log_event("failure", step, rank=rank(), **what)
            self.folder.flush()

    def close(self) -> None:
        """Everything that waits is written."""
        self.folder.flush()
        if self.tracking:
            self.tracking.flush()

    def _event(self, kind: str, step: int, **what: Any) -> None:
        if rank() == 0:
            self.folder.log_event(kind, step, **what)
            self.folder.flush()
