"""A rank of a run inside a Ray Train worker."""

from collections.abc import Iterator, Mapping
from functools import partial
from itertools import chain
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch

from tips_ray.config import RunConfig
from tips_ray.data.pipeline import followed
from tips_ray.data.stream import CaptionAccess
from tips_ray.devices import allocator_settings
from tips_ray.distributed import aborted_on_error, rank
from tips_ray.runs.run import Run
from tips_ray.train.adapter import asked_here
from tips_ray.train.collapse import signs
from tips_ray.train.graceful_stop import GracefulStop
from tips_ray.train.micro_batch import Found, find
from tips_ray.train.monitoring import RunMetrics
from tips_ray.train.run_recorder import Show
from tips_ray.train.worker_log import log_to_stderr
from tips_ray.train.worker_loop import train_worker


def found_on_workers(run: Run) -> list[Found]:
    """The micro-batch that fits on each worker's device, tried on all at once."""
    resources = run.config.resources
    options: Any = {"num_cpus": resources.cpus_per_worker, "num_gpus": resources.gpus_per_worker, "max_calls": 1}
    if settings := allocator_settings(resources):
        options["runtime_env"] = {"env_vars": settings}
    task: Any = ray.remote(**options, resources=resources.role("train"))(_found_here)
    return ray.get([task.remote(run) for _ in range(resources.workers)])


def _found_here(run: Run) -> Found:
    # Ray shows a task the GPUs that it holds, and torch calls the first of them 0.
    return find(run, torch.device("cuda", 0) if run.config.resources.gpus_per_worker else torch.device("cpu"))


def run_worker(told: dict[str, Any]) -> None:
    """Train from the step at which the stream begins to the end; every rank runs this.

    Args:
        told: `run`, `captions` of its stream, and `log_level`.
    """
    log_to_stderr(told["log_level"])
    run, open_stream = told["run"], partial(_opened_stream, told["run"], told["captions"])
    # Only metrics go to Ray. With checkpoints it would keep notes, and restart no run whose notes are lost or damaged.
    shown = RunMetrics(run.config.name)
    with shown.repeated():
        show = shown_steps(shown, run.config)
        device = ray.train.torch.get_device()
        with aborted_on_error(device, planned=(GracefulStop,)):  # Ray ends the group where it is still there
            train_worker(run, device, open_stream, ray.train.report, asked_here, show)


def shown_steps(shown: RunMetrics, config: RunConfig) -> Show:
    """A function that shows a logged step, and how many signs of collapse it has."""
    of_collapse = [sign for sign in signs(config) if sign.key == "stop_on_collapse"]
    last: dict[str, float] = {}  # effective ranks are not in every line

    def show(step: int, metrics: Mapping[str, float]) -> None:
        shown.log(step, metrics)
        last.update(metrics)
        is_judged = step > config.schedule.warmup_steps
        count = sum(sign.is_there(last) for sign in of_collapse) if is_judged else 0
        shown.set("tips_ray_collapse_signs", count)

    return show


def _opened_stream(run: Run, captions: CaptionAccess | None) -> tuple[int, Iterator[dict[str, Any]]]:
    """The step at which this worker's stream begins, and its micro-batches as columns."""
    config = run.config
    shard_of_data: Any = ray.train.get_dataset_shard("train")
    stream = iter(
        shard_of_data.iter_batches(
            batch_size=config.images_per_pass, prefetch_batches=config.data_prefetch_batches, batch_format="numpy"
        )
    )
    first = next(stream, None)
    if first is None:  # workers were lost after the last checkpoint and before the end
        return config.schedule.total_steps, stream
    rest = followed(stream, config, run.index_uri, captions) if rank() == 0 else stream
    return int(first["step"][0]), chain([first], rest)
