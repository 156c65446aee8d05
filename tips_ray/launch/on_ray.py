"""Training on Ray Train: the trainer that `pretrain` takes by default."""

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any

import ray
import ray.data
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, ScalingConfig
from ray.train.torch import TorchConfig
from ray.train.v2.api.exceptions import TrainingFailedError

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.console import tell
from tips_ray.data.stream import CaptionAccess
from tips_ray.devices import allocator_settings
from tips_ray.distributed import BACKENDS
from tips_ray.errors import described, root_cause
from tips_ray.launch import cluster
from tips_ray.launch.checkpoint_evaluation import (
    CheckpointEvaluator,
    device_here,
    evaluate_checkpoint,
    evaluated_beside,
    note_lost,
    with_whole_places,
)
from tips_ray.launch.failure import failures_as_sentences
from tips_ray.launch.head import head_watched
from tips_ray.launch.monitoring import shown_on_prometheus
from tips_ray.launch.progress import shown_progress
from tips_ray.launch.sizes import ready_bytes, stream_sizes
from tips_ray.launch.stops import ask_patiently, signals_stop, stuck_ones_aborted
from tips_ray.ray_data_adapter import InOrder, start_coordinator
from tips_ray.runs import Run, RunFolder
from tips_ray.runs.checkpoint import CheckpointInfo
from tips_ray.runs.evaluations import required
from tips_ray.train.adapter import ElasticTrainer, shorten_waits
from tips_ray.train.dataset import RestOfRun
from tips_ray.train.micro_batch import keep, settled
from tips_ray.train.worker import found_on_workers, run_worker
from tips_ray.train.worker_log import LEVEL

WORKER_LOGS = "logs of the workers are in /tmp/ray/session_latest/logs of their nodes"
FAILURES = (TrainingFailedError, RayError)
"""Errors that `fit` raises."""
CURE = "once there is a head again, the same command resumes from the newest checkpoint (--supervise does it by itself)"


class RayTrainer:
    """Trains on the cluster at RAY_ADDRESS, or on a Ray that starts on this machine."""

    def adapted(self, config: RunConfig) -> RunConfig:
        return config

    def checks(self, config: RunConfig) -> Mapping[str, Callable[[], str]]:
        return {}

    def follow(self, config: RunConfig) -> bool:
        return False

    def skip(self, config: RunConfig) -> None:
        pass

    def train(self, run: Run, captions: CaptionAccess | None) -> None:
        """
        Raises:
            RunFailedError: training stopped.
            RunStopped: it was asked to.
        """
        if not ray.is_initialized():
            where = cluster.address()
            tell("ray", f"joining the cluster at {where}" if where else "starting Ray on this machine")
        cluster.connect(cluster.cpus_needed(run.config), ready_bytes(run.config))
        ray.data.DataContext.get_current().enable_progress_bars = False
        run, folder = _with_micro_batch(run), RunFolder(run.uri)
        shorten_waits(run.config)
        start_coordinator(run.config.resources.poll_seconds)
        trainer = _ray_trainer(run, captions)
        with (
            head_watched(CURE),
            signals_stop(partial(ask_patiently, run)),  # Ray sets handlers when it starts
            stuck_ones_aborted(run),
            shown_on_prometheus(run, captions),
        ):
            with (
                shown_progress(folder, run.config, WORKER_LOGS),
                evaluated_beside(_evaluator(run), partial(ask_patiently, run)),
                failures_as_sentences(folder, FAILURES),
            ):
                trainer.fit()

    def evaluate(self, run: Run) -> None:
        cluster.connect(cluster.cpus_needed(run.config))
        with head_watched(CURE), signals_stop(partial(ask_patiently, run)), stuck_ones_aborted(run):
            with evaluated_beside(_evaluator(run), lambda reason: None):
                pass


def _evaluator(run: Run) -> CheckpointEvaluator:
    there = with_whole_places(run)  # a task's working directory is another one
    evaluator = CheckpointEvaluator(run, lambda checkpoint: _evaluated_in_task(there, checkpoint, evaluator.left))
    return evaluator


def _evaluated_in_task(run: Run, checkpoint: CheckpointInfo, left: threading.Event) -> None:
    """Evaluate a checkpoint in a Ray task; a task that Ray loses again and again makes an evaluation that failed.

    Raises:
        StorageError: the storage does not answer, the checkpoint is damaged, or nobody waits any more.
    """
    config = required(run.config)
    options: Any = {"num_cpus": config.cpus, "num_gpus": config.gpus, "max_retries": 3, "max_calls": 1}
    ref = ray.remote(**options)(_evaluated_there).remote(run, checkpoint)
    while not ray.wait([ref], timeout=1)[0]:
        if left.is_set():
            ray.cancel(ref, force=True)
            raise storage.StorageError("the run ends before the evaluation does", may_pass=True)
    try:
        ray.get(ref)
    except RayError as error:
        if isinstance(cause := root_cause(error), storage.StorageError):
            raise cause from None
        note_lost(run, checkpoint, described(error))


def _evaluated_there(run: Run, checkpoint: CheckpointInfo) -> None:
    config = required(run.config)
    torch.set_num_threads(config.cpus)
    evaluate_checkpoint(run, checkpoint, device_here(config.gpus))


def _ray_trainer(run: Run, captions: CaptionAccess | None) -> ElasticTrainer:
    notes = storage.join(run.uri, "ray")  # Ray's notes about an earlier start, which a kill may have damaged
    storage.delete_folder(notes)
    failures = FailureConfig(max_failures=run.config.resources.max_failures)
    settings, timeout = allocator_settings(run.config.resources), ceil(run.config.most_wait_seconds)
    return ElasticTrainer(
        run_worker,
        run=run,
        train_loop_config={"run": run, "captions": captions, "log_level": os.environ.get(LEVEL, "INFO")},
        torch_config=TorchConfig(
            BACKENDS["cuda" if run.config.resources.gpus_per_worker else "cpu"], timeout_s=timeout
        ),
        scaling_config=_scaling(run.config),
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=notes,
            failure_config=failures,
            worker_runtime_env={"env_vars": settings} if settings else {},
        ),
        datasets={"train": RestOfRun(run, captions)},
        dataset_config=InOrder(),
    )


def _with_micro_batch(run: Run) -> Run:
    """The run with a number for `micro_batch_images: auto`."""
    if run.config.micro_batch_images != "auto":
        return run
    found = found_on_workers(run)
    keep(run.uri, found)
    config = settled(run, found)
    tell("micro_batch", f"micro-batch {config.images_per_pass} images; {stream_sizes(config)}")
    return replace(run, config=config)


def _scaling(config: RunConfig) -> Any:
    resources = config.resources
    return ScalingConfig(
        num_workers=(config.worker_counts[0], resources.workers) if resources.min_workers else resources.workers,
        elastic_resize_monitor_interval_s=resources.resize_seconds,
        use_gpu=resources.gpus_per_worker > 0,
        resources_per_worker=resources.of_worker,
    )
