"""A rank of a run inside a Ray Train worker."""

from collections.abc import Iterator
from functools import partial
from itertools import chain
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from tips_ray.data.pipeline import followed
from tips_ray.data.stream import StreamInputs
from tips_ray.distributed import rank
from tips_ray.runs.run import RunInputs
from tips_ray.train.adapter import asked_here
from tips_ray.train.dataset import WorkerInputs
from tips_ray.train.micro_batch import Found, find
from tips_ray.train.worker_loop import run_attempt


def found_on_workers(run: RunInputs) -> list[Found]:
    """What fits on each worker's device, tried on all at once."""
    resources = run.config.resources
    options: Any = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker, "max_calls": 1}
    task: Any = ray.remote(**options, resources=resources.role("train"))(_found_here)
    return ray.get([task.remote(run) for _ in range(resources.workers)])


def _found_here(run: RunInputs) -> Found:
    return find(run, torch.device("cuda" if run.config.resources.gpus_per_worker else "cpu"))


def run_worker(job: dict[str, Any]) -> None:
    """Train from the step at which the stream begins to the end; every rank runs this."""
    inputs: WorkerInputs = job["inputs"]
    # Ray is told metrics alone: without its notes of checkpoints, or with damaged ones, it starts no run again.
    report = ray.train.report
    run_attempt(inputs.run, ray.train.torch.get_device(), partial(_opened_stream, inputs.stream), report, asked_here)


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
