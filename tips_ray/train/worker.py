"""A rank of a run inside a Ray Train worker, and the dataset that feeds it."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from ray.train import Checkpoint

from tips_ray.data.pipeline import followed, tell_pace, training_stream
from tips_ray.data.stream import StreamInputs
from tips_ray.distributed import rank
from tips_ray.train.attempt import run_attempt
from tips_ray.train.checkpoint import newest_checkpoint
from tips_ray.train.run_folder import RunFolder
from tips_ray.train.sink import RunInputs


@dataclass(frozen=True)
class WorkerInputs:
    """What a worker is told; picklable."""

    stream: StreamInputs
    run: RunInputs


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
        found = newest_checkpoint(self.inputs.run.checkpoints_uri)
        if found:
            self._require_same_data(found.manifest)
        step = found.step if found else 0
        tell_pace(self.inputs.stream, step)
        return training_stream(self.inputs.stream, step)

    def _stops(self) -> list[str]:
        events = RunFolder(self.inputs.run.uri).read_events()
        return [event["error"] for event in events if event["kind"] == "failure" and event["is_final"]]

    def _require_same_data(self, manifest: dict[str, Any]) -> None:
        given, trained = self.inputs.run.fingerprints["data_fingerprint"], manifest["data_fingerprint"]
        if given != trained:
            raise ValueError(
                f"the data of {self.inputs.run.uri} have changed since step {manifest['step']} (fingerprint "
                f"{trained[:12]} -> {given[:12]}): restore them, or give the run another name"
            )


def run_worker(job: dict[str, Any]) -> None:
    """Train from the step at which the stream begins to the end; every rank runs this."""
    inputs: WorkerInputs = job["inputs"]
    run_attempt(inputs.run, ray.train.torch.get_device(), partial(_opened_stream, inputs.stream), _report)


def _opened_stream(inputs: StreamInputs) -> tuple[int, Iterator[dict[str, Any]]]:
    """The step at which this worker's stream begins, and its micro-batches as columns."""
    config = inputs.config
    shard_of_data: Any = ray.train.get_dataset_shard("train")
    stream = iter(
        shard_of_data.iter_batches(
            batch_size=config.images_per_pass, prefetch_batches=config.data_prefetch_batches, batch_format="numpy"
        )
    )
    first = next(stream, None)
    if first is None:  # lost after the last checkpoint and before the end
        return config.schedule.total_steps, stream
    rest = followed(inputs, stream) if rank() == 0 else stream
    return int(first["step"][0]), chain([first], rest)


def _report(checkpoint_uri: str, metrics: dict[str, float]) -> None:
    """A pointer to our checkpoint as Ray's: Ray takes none outside of its own folder."""
    with tempfile.TemporaryDirectory() as pointer:
        Path(pointer, "checkpoint.uri").write_text(checkpoint_uri)
        ray.train.report(metrics, Checkpoint.from_directory(pointer) if rank() == 0 else None)
