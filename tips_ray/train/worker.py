"""The training loop inside a Ray Train worker."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
import torch
from ray.train import Checkpoint
from torch.distributed.device_mesh import init_device_mesh

from tips_ray import storage
from tips_ray.batch import Batch
from tips_ray.config import RunConfig
from tips_ray.data.collate import batch_from
from tips_ray.data.pipeline import StreamInputs, training_stream
from tips_ray.distributed import gather_objects, rank, world_size
from tips_ray.models.networks import Student, Teacher
from tips_ray.tracking import TrackingHandle
from tips_ray.train.checkpoint import (
    checkpoint_at,
    drop_old_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from tips_ray.train.loop import train
from tips_ray.train.machine import machine, versions
from tips_ray.train.parallelize import apply_recomputation, compile_blocks, shard
from tips_ray.train.run_folder import RunFolder
from tips_ray.train.state import TrainState, new_state


@dataclass(frozen=True)
class WorkerInputs:
    """What a worker is told; picklable."""

    stream: StreamInputs
    run_uri: str
    fingerprints: dict[str, str]
    tracking: TrackingHandle | None

    @property
    def checkpoints_uri(self) -> str:
        return storage.join(self.run_uri, "checkpoints")


class RestOfRun:
    """The dataset of an attempt: called at every start of the worker group, it looks up where the run stands.

    Nobody else does: the rows say at which step they begin, and the workers load the checkpoint of that step.
    """

    def __init__(self, inputs: WorkerInputs) -> None:
        self.inputs = inputs
        self._known_stops = len(self._stops())  # of earlier drivers

    def __call__(self) -> ray.data.Dataset:
        """
        Raises:
            ValueError: a worker has stopped for a reason that would come again; or the data are not those that the
                checkpoint was trained on.
        """
        stops = self._stops()[self._known_stops :]
        if stops:
            raise ValueError(stops[0])
        found = newest_checkpoint(self.inputs.checkpoints_uri)
        if found:
            self._require_same_data(found.manifest)
        return training_stream(self.inputs.stream, found.step if found else 0)

    def _stops(self) -> list[str]:
        events = RunFolder(self.inputs.run_uri).read_events()
        return [event["error"] for event in events if event["kind"] == "failure" and event["is_final"]]

    def _require_same_data(self, manifest: dict[str, Any]) -> None:
        given, trained = self.inputs.fingerprints["data_fingerprint"], manifest["data_fingerprint"]
        if given != trained:
            raise ValueError(
                f"the data of {self.inputs.run_uri} have changed since step {manifest['step']} (fingerprint "
                f"{trained[:12]} -> {given[:12]}): restore them, or give the run another name"
            )


def run_worker(job: dict[str, Any]) -> None:
    """Train from the step at which the stream begins to the end; every rank runs this."""
    inputs: WorkerInputs = job["inputs"]
    config, device = inputs.stream.config, ray.train.torch.get_device()
    torch.set_num_threads(max(int(config.resources.cpus_per_worker), 1))
    state = new_state(config, device=device, prepare=partial(_prepared, config))
    first_step, blocks = _opened_stream(config)
    if first_step:
        load_checkpoint(state, checkpoint_at(inputs.checkpoints_uri, first_step))
    sink = RunSink(inputs, state.step, device)
    try:
        train(state, _steps(state, config, device, blocks, sink), config, sink)
    except Exception as error:
        sink.note_failure(state.step, error)
        raise
    sink.close()


def _prepared(config: RunConfig, student: Student, teacher: Teacher) -> None:
    resources = config.resources
    apply_recomputation(student, resources.recompute)
    if resources.compile:
        compile_blocks(student)
        compile_blocks(teacher)
    device = next(student.parameters()).device
    mesh = init_device_mesh(device.type, (world_size(),))
    shard(student, teacher, mesh, torch.bfloat16 if resources.dtype == "bf16" else torch.float32)


def _opened_stream(config: RunConfig) -> tuple[int, Iterator[dict[str, Any]]]:
    """The step at which this worker's stream begins, and its micro-batches as columns."""
    shard_of_data: Any = ray.train.get_dataset_shard("train")
    stream = iter(
        shard_of_data.iter_batches(
            batch_size=config.images_per_pass, prefetch_batches=config.data_prefetch_batches, batch_format="numpy"
        )
    )
    first = next(stream, None)
    if first is None:  # lost after the last checkpoint and before the end
        return config.schedule.total_steps, stream
    return int(first["step"][0]), chain([first], stream)


def _steps(
    state: TrainState, config: RunConfig, device: torch.device, stream: Iterator[dict[str, Any]], sink: "RunSink"
) -> Iterator[Sequence[Batch]]:
    """This worker's micro-batches, step by step.

    Raises:
        RuntimeError: the stream stands at another step than the state: dataset and checkpoint disagree.
    """
    passes = config.global_batch_images // world_size() // config.images_per_pass
    micro_batches: list[Batch] = []
    for columns in stream:
        if (columns["step"] != state.step).any():
            raise RuntimeError(f"the data stream brought step {columns['step'][0]}, the state is at {state.step}")
        sink.note_rows(columns)
        micro_batches.append(batch_from(columns).to(device))
        if len(micro_batches) == passes:
            yield micro_batches
            micro_batches = []


class RunSink:
    """Run folder, MLflow and Ray Train: metrics from rank 0, checkpoints and rejects from all."""

    def __init__(self, inputs: WorkerInputs, step: int, device: torch.device) -> None:
        self.inputs, self.folder = inputs, RunFolder(inputs.run_uri, rank())
        self.folder.drop_after(step)
        self.tracking = inputs.tracking if rank() == 0 else None
        self._samples: list[dict[str, Any]] = []
        on, of = machine(device), versions()
        self._event("resume" if step else "start", step, workers=world_size(), machine=on, versions=of)

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """A line in the run folder, a point in MLflow."""
        samples = gather_objects(self._samples) if self.inputs.stream.config.data.log_samples else []
        self._samples = []
        if rank() != 0:
            return
        self.folder.log_samples(line for lines in samples for line in lines)
        self.folder.log_metrics(step, metrics)
        self.folder.flush()
        if self.tracking:
            self.tracking.log(step, metrics)

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        """A checkpoint of ours, and a pointer to it as Ray's: Ray takes no checkpoint outside of its own folder."""
        started = time.perf_counter()
        saved = save_checkpoint(state, self.inputs.checkpoints_uri, self.inputs.fingerprints)
        if rank() == 0:
            drop_old_checkpoints(self.inputs.checkpoints_uri, state.step, self.inputs.stream.config.keep_last)
        seconds = round(time.perf_counter() - started, 3)
        self._event("checkpoint", state.step, uri=saved.uri, seconds=seconds)
        with tempfile.TemporaryDirectory() as pointer:
            Path(pointer, "checkpoint.uri").write_text(saved.uri)
            known = Checkpoint.from_directory(pointer) if rank() == 0 else None
            ray.train.report({"step": state.step, **metrics}, known)

    def note_rows(self, columns: dict[str, Any]) -> None:
        """Lines in the rejects table for the invalid rows of a micro-batch; its samples wait for the next log."""
        if self.inputs.stream.config.data.log_samples:
            places = {"positions": columns["position"].tolist(), "sample_ids": columns["sample_id"].tolist()}
            self._samples.append({"step": int(columns["step"][0]), "rank": rank(), **places})
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
