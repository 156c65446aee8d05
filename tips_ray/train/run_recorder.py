"""Where a run's results go: run folder, MLflow and checkpoints, without Ray.

Training writes nothing itself: lines wait for a thread beside it, and are there before a checkpoint counts as written.
"""

import logging
import os
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import torch

from tips_ray import storage
from tips_ray.batch import Batch
from tips_ray.checkpoint_io import CheckpointWriter
from tips_ray.distributed import gather_objects, rank, world_size
from tips_ray.errors import is_final, root_cause
from tips_ray.runs.evaluations import drop_unneeded, forget_after
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import LeaseLostError, require_newest
from tips_ray.runs.mlflow_access import mlflow_is_here
from tips_ray.runs.mlflow_facts import versions
from tips_ray.runs.mlflow_handle import CLOSE_SECONDS, TrackingHandle
from tips_ray.runs.restart import Restart, attempt_before
from tips_ray.runs.run import Run
from tips_ray.runs.system_metrics import SystemMetrics
from tips_ray.train.checkpointing import checkpoint_parts
from tips_ray.train.guard import save_bad_step
from tips_ray.train.state import TrainState

Report = Callable[[dict[str, float]], None]
"""Called by every rank for each checkpoint that all ranks have written, with its step and that step's metrics."""
Show = Callable[[int, Mapping[str, float]], None]
"""Called by rank 0 for each logged step, with its metrics."""
FAILED_SECONDS = 2.0
"""Longest wait for MLflow where training has failed, and the other workers wait for this one."""
log = logging.getLogger(__name__)


def show_nothing(step: int, metrics: Mapping[str, float]) -> None:
    """For a run that nobody watches."""


class RunRecorder:
    """The loop's recorder: metrics and events from rank 0, checkpoints and rejects from all."""

    def __init__(
        self,
        run: Run,
        step: int,
        device: torch.device,
        report: Report,
        weights_from: dict[str, dict[str, Any]] | None = None,
        restart: Restart | None = None,
        show: Show = show_nothing,
    ) -> None:
        """
        Args:
            weights_from: sources of a new run's initial weights, as `load_initial_weights` returns them.
            restart: measures this start; None: it is not measured.
            show: shows a logged step to whoever watches the run; it must not wait.
        """
        self.run, self.report, self.show = run, report, show
        self.folder = RunFolder(run.uri, rank(), is_patient=True)
        self._thread, self._flushing = ThreadPoolExecutor(1, "lines"), _done()
        self._first_step, self._restart = step, restart
        self._before = attempt_before(self.folder) if rank() == 0 and restart else None
        self.folder.drop_after(step)
        if rank() == 0 and run.config.evaluate_every_steps:
            forget_after(run.uri, step)
        hosts = gather_objects(_host(device))
        self._logged_step = step
        self.tracking = TrackingHandle(run.tracking_uri, run.mlflow_run_id)
        self._system_metrics = self._measured([host["name"] for host in hosts])
        self._samples: list[dict[str, Any]] = []
        self._rows: dict[int, list[dict[str, Any]]] = {}
        """Ids of the micro-batches by the stream's step, of the last two: a step is judged while the next one runs."""
        self._writer = self._new_writer(device)
        self._saved_metrics: dict[str, float] = {}
        """Metrics of the step whose checkpoint is in flight."""
        self._stall: dict[str, float] = {}
        weights = {"from": weights_from} if weights_from else {}
        found = {"machine": machine(hosts), "versions": versions()}
        self._event("resume" if step else "start", step, workers=world_size(), **found, **weights)
        self._flushing.result()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Write a line to the run folder and a point to MLflow; report a checkpoint that is complete by now."""
        samples = gather_objects(self._samples) if self.run.config.data.log_samples else []
        self._samples = []
        if rank() == 0:
            self.folder.log_samples(line for lines in samples for line in lines)
            self._log_metrics(step, {**metrics, **self._stall})
        self._stall, self._logged_step = {}, step
        self._note_committed()

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """Begin a checkpoint once the one before it is complete; returns when the state is copied."""
        started = time.perf_counter()
        self._note_committed(wait=True)
        self._writer.start(*checkpoint_parts(state))
        self._stall = {"checkpoint_stall_ms": round(1000 * (time.perf_counter() - started), 3)}
        self._saved_metrics = {"step": state.step, **metrics, **self._stall}
        log.info("checkpoint of step %d begins", state.step)

    def save_bad_step(self, state: TrainState, micro_batches: Sequence[Batch], facts: dict[str, Any]) -> str:
        """Save state, batches and sample ids for `tips-ray replay`, and log an event."""
        rows = self._rows.get(facts["step"] - 1, [])
        uri = save_bad_step(self.run.uri, state, micro_batches, rows, facts, self.run.fingerprints)
        told = {name: value for name, value in facts.items() if name not in ("step", "metrics")}
        self._event("bad_step", facts["step"], **told, uri=uri)
        self._flushing.result()
        return uri

    def note_rows(self, columns: Mapping[str, Any]) -> None:
        """Add the invalid rows of a micro-batch to the rejects table; its samples wait for the next `log`."""
        if self.run.config.data.log_samples:
            places = {"positions": columns["position"].tolist(), "sample_ids": columns["sample_id"].tolist()}
            self._samples.append({"step": int(columns["step"][0]), "rank": rank(), **places})
        step, called = int(columns["step"][0]), {name: columns[name].tolist() for name in ("sample_id", "key")}
        self._rows = {known: rows for known, rows in self._rows.items() if known >= step - 1}
        self._rows.setdefault(step, []).append({"step": step, **called})
        bad = (~columns["valid"]).nonzero()[0]
        names = {"step": "step", "sample_id": "sample_id", "key": "key", "reason": "reject"}
        values = [columns[column][bad].tolist() for column in names.values()]  # plain values, whatever Ray made of text
        rows = [dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]
        if rows:
            self.folder.log_rejects(rows)
            if storage.is_local(self.folder.uri):  # on an object store they wait for the next checkpoint
                self._flush_beside()

    def note_step(self) -> None:
        """A step is done; after the first step of a restart, an event records what changed."""
        if self._before and self._restart:
            self._event(
                "change", self._first_step, **self._restart.change(self._before, self._first_step, world_size())
            )
        self._before = None

    def rejects(self) -> str:
        """See `Recorder`. Rank 0 alone reads them, once every rank has written its own."""
        self._flush_at_last()
        gather_objects(None)
        return gather_objects(self.folder.described_rejects() if rank() == 0 else None)[0]

    def note_failure(self, step: int, error: Exception) -> None:
        """Log an event, see the function `note_failure`; a save in flight ends first."""
        self._writer.wait()
        self._thread.shutdown()
        note_failure(self.folder, step, error)
        self._close_tracking(FAILED_SECONDS)

    def close(self) -> None:
        """Wait for the last checkpoint, and write everything that waits."""
        try:
            self.note_step()  # for a start of only one step
            self._note_committed(wait=True)
            self._writer.close()
            self._thread.shutdown()
            self._flush_at_last()
        finally:
            self._close_tracking(CLOSE_SECONDS)

    def _measured(self, names: Sequence[str]) -> SystemMetrics | None:
        """System metrics of this node, from the first of its ranks. `names`: the host of each rank."""
        nodes = list(dict.fromkeys(names))
        own = names[rank()]
        is_here = self.run.tracking_uri is not None and mlflow_is_here(self.run.tracking_uri)
        if not (is_here and self.run.config.tracking.system_metrics and names.index(own) == rank()):
            return None
        return SystemMetrics(self.tracking, nodes.index(own) if len(nodes) > 1 else None, lambda: self._logged_step)

    def _close_tracking(self, seconds: float) -> None:
        if self._system_metrics:
            self._system_metrics.close()
        self.tracking.close(seconds)

    def _new_writer(self, device: torch.device) -> CheckpointWriter:
        run, config = self.run, self.run.config
        drop = partial(drop_unneeded, config, run.uri)
        patience = config.checkpoint_patience_seconds
        owned = partial(require_newest, run.uri, run.generation) if run.generation else lambda: None
        return CheckpointWriter(run.checkpoints_uri, run.fingerprints, device, patience, owned, drop, self.folder.seal)

    def _note_committed(self, wait: bool = False) -> None:
        """Report the checkpoint in flight, if all ranks have written it."""
        committed = self._writer.committed(wait)
        if committed is None:
            return
        saved, seconds = committed
        stall_ms = self._saved_metrics["checkpoint_stall_ms"]
        log.info("checkpoint saved: %s, %.1f s in the background, %.0f ms in training", saved.uri, seconds, stall_ms)
        self._event("checkpoint", saved.step, uri=saved.uri, seconds=round(seconds, 3), stall_ms=stall_ms)
        self.report(self._saved_metrics)

    def _log_metrics(self, step: int, metrics: dict[str, float]) -> None:
        self.folder.log_metrics(step, metrics)
        self._flush_beside()
        self.tracking.log(step, metrics)
        self.show(step, metrics)

    def _event(self, kind: str, step: int, **what: Any) -> None:
        if rank() == 0:
            self.folder.log_event(kind, step, **what)
            self._flush_beside()

    def _flush_beside(self) -> None:
        """Let the thread write what waits; raises what a try before raised for good.

        Beside a try that goes on one waits, and writes all that came meanwhile: storage that does not answer holds up
        each of them.
        """
        if self._flushing.done():
            self._flushing.result()
        if self._flushing.done() or self._flushing.running():
            self._flushing = self._thread.submit(self.folder.flush_if_there)

    def _flush_at_last(self) -> None:
        storage.keep_trying(self.folder.flush, self.run.config.checkpoint_patience_seconds)


def _done() -> Future[None]:
    """A future of nothing to wait for."""
    nothing: Future[None] = Future()
    nothing.set_result(None)
    return nothing


def note_failure(folder: RunFolder, step: int, error: Exception) -> None:
    """Log an event of this rank; only rank 0 logs final errors, which all ranks raise alike and would raise again.

    A run that another start has taken over has not failed.
    """
    cause = root_cause(error)  # of an error of Ray's stream
    if isinstance(cause, LeaseLostError):
        if rank() == 0:
            folder.try_event("taken_over", step, error=str(cause))
        return
    if rank() == 0 or not is_final(cause):
        what = {"error": str(cause), "type": type(cause).__name__, "is_final": is_final(cause)}
        folder.try_event("failure", step, rank=rank(), **what)


def machine(hosts_of_ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Hosts of all ranks together with their cores, memory and accelerators."""
    hosts = {host["name"]: host for host in hosts_of_ranks}.values()
    accelerators = sorted({name for host in hosts for name in host["accelerators"]})
    return {
        "hosts": len(hosts),
        "cores": sum(host["cores"] for host in hosts),
        "memory": f"{sum(host['memory_bytes'] for host in hosts) / 2**30:.0f} GiB",
        "accelerators": ", ".join(accelerators) or "none",
    }


def _host(device: torch.device) -> dict[str, Any]:
    count = torch.cuda.device_count() if device.type == "cuda" else 0
    names = [torch.cuda.get_device_name(number) for number in range(count)]
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"name": socket.gethostname(), "cores": cores, "memory_bytes": memory_bytes, "accelerators": names}
