"""Training without Ray: in this process, or as one of the ranks that torchrun has started.

Rank 0 is also the driver: it runs the checks, claims the run folder, sends the run to the other ranks, and tracks. The
others wait for the run in the process group, then train.
"""

import multiprocessing
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from tips_ray.config import RunConfig, override
from tips_ray.console import tell
from tips_ray.data.local_stream import local_stream
from tips_ray.data.stream import CaptionAccess
from tips_ray.devices import allocator_settings
from tips_ray.distributed import BACKENDS, aborted_on_error, alone, background_group, gather_objects, rank, world_size
from tips_ray.errors import CheckWarning, RunFailedError, RunStopped, described, is_echo
from tips_ray.launch.checkpoint_evaluation import (
    CheckpointEvaluator,
    device_here,
    evaluate_checkpoint,
    patience_words,
)
from tips_ray.launch.checks import captions_come
from tips_ray.launch.cluster import gpus_here
from tips_ray.launch.failure import failures_as_sentences
from tips_ray.launch.progress import shown_progress
from tips_ray.launch.sizes import row_bytes, shared_bytes
from tips_ray.launch.stops import signals_stop
from tips_ray.runs import Run, RunFolder
from tips_ray.runs.checkpoint import DamagedCheckpointError
from tips_ray.runs.evaluations import PATIENCE
from tips_ray.runs.stop import stop_asked
from tips_ray.storage import StorageError
from tips_ray.train import graceful_stop
from tips_ray.train.graceful_stop import GracefulStop
from tips_ray.train.micro_batch import find, keep, settled
from tips_ray.train.worker_log import log_to_stderr
from tips_ray.train.worker_loop import train_worker
from tips_ray.words import bytes_text

SHARED_MEMORY = Path("/dev/shm")
"""Data processes pass batches through it (Linux)."""
UNGUARDED = (
    "a data process imports the script that called pretrain, and the script calls it again; call it below "
    'if __name__ == "__main__":'
)
Job = tuple[Run, CaptionAccess | None]


class RankTrainer:
    """Trains in this process, or as one of the ranks that torchrun has started; starts no Ray."""

    def adapted(self, config: RunConfig) -> RunConfig:
        """The config with as many `resources.workers` as there are ranks.

        Raises:
            ValueError: the global batch cannot be divided among them.
            SystemExit: a data process imports the script that trains, and the script calls this outside its main block.
        """
        if getattr(multiprocessing.current_process(), "_inheriting", False):
            sys.stderr.write(f"error: {UNGUARDED}\n")
            sys.exit(1)
        values = {"resources.workers": ranks(), "resources.min_workers": None}
        return override(RunConfig, config.model_dump(mode="json"), values)

    def checks(self, config: RunConfig) -> Mapping[str, Callable[[], str]]:
        """Checks that replace those of a run on Ray, see `preflight`."""
        return {
            "captions": lambda: captions_are_there(config),
            "resources": lambda: resources_suffice(config),
            "stream": lambda: batches_fit_shared_memory(config),
            **dict.fromkeys(("shared memory", "ray sockets", "home"), lambda: "no Ray here"),
        }

    def follow(self, config: RunConfig) -> bool:
        """Follow rank 0 to the end of the run; returns False on rank 0 itself.

        Raises:
            RunFailedError: training stopped because of this rank.
            SystemExit: training stopped, and another rank reports why.
        """
        if not int(os.environ.get("RANK", 0)):
            return False
        _follow(config)
        return True

    def skip(self, config: RunConfig) -> None:
        """Tell the other ranks that the run is complete."""
        if ranks() > 1:
            with _process_group(config):
                _broadcast(None)

    def train(self, run: Run, captions: CaptionAccess | None) -> None:
        """Train as rank 0.

        Raises:
            RunFailedError: training stopped.
            RunStopped: it was asked to.
        """
        log_to_stderr("WARNING")
        folder = RunFolder(run.uri)
        if is_restarted_by_torchrun() and (request := stop_asked(run.uri, run.generation - 1)):
            self.skip(run.config)
            raise RunStopped(f"{request}; torchrun started it again: leave out --max-restarts to stop at once")
        with failures_as_sentences(folder, (Exception,)), shown_progress(folder, run.config):
            with _process_group(run.config) as device:
                _train(_broadcast((run, captions)), device)

    def evaluate(self, run: Run) -> None:
        """Evaluate what waits, in this process, while other ranks have nothing to do.

        Raises:
            RunStopped: it was asked to leave.
        """
        self.skip(run.config)
        graceful_stop.ask("")
        with signals_stop(lambda by: graceful_stop.ask(f"stopped by {by}")):
            evaluator = _evaluator(run, device_here(run.config.resources.gpus_per_worker))
            evaluator.advance_all(partial(_is_asked, run))
        if _is_asked(run):
            raise RunStopped(graceful_stop.asked() or str(stop_asked(run.uri, run.generation)))


def is_restarted_by_torchrun() -> bool:
    """torchrun starts all ranks again when one has failed, up to --max-restarts times."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT") or 0) > 0


def ranks() -> int:
    """Number of ranks that torchrun set, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def captions_are_there(config: RunConfig) -> str:
    """Captions are in the data or in a store; none are made beside training."""
    if config.captions.source == "live":
        raise ValueError(
            "captions.source (live) needs Ray: run tips-ray caption with this config, then train with "
            "captions.source=store"
        )
    return captions_come(config)


def resources_suffice(config: RunConfig) -> str:
    """Every rank of this machine has a GPU, if the config asks for GPUs."""
    wanted, here, local = config.resources.gpus_per_worker, gpus_here(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if wanted and local > here:
        raise ValueError(
            f"resources.gpus_per_worker ({wanted:g}): {local} ranks of this machine need a GPU each, there are {here}: "
            "start fewer ranks, or set it to 0 to train on CPUs"
        )
    if here and not wanted:
        raise CheckWarning(f"trains on CPUs, though this machine has {here} GPUs: set resources.gpus_per_worker=1")
    on = "a GPU each" if wanted else "CPUs"
    return f"without Ray, {ranks()} ranks on {on}, {data_processes(config)} data processes for each"


def batches_fit_shared_memory(config: RunConfig) -> str:
    """Batches that are ready or in use for the ranks of this machine fit into shared memory."""
    if config.micro_batch_images == "auto":
        return f"{bytes_text(row_bytes(config))} a row; micro_batch_images (auto) is found before the first step"
    ready = shared_batches(config) * shared_bytes(config) * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    have = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else None
    if have is not None and ready > have:
        raise ValueError(
            f"data_prefetch_batches ({config.data_prefetch_batches}) and resources.data_cpus keep {bytes_text(ready)} "
            f"of crops ready, {SHARED_MEMORY} has {bytes_text(have)}: lower them, set micro_batch_images, or give the "
            "container more (docker run --shm-size)"
        )
    return f"{bytes_text(row_bytes(config))} a row, {bytes_text(ready)} ready in shared memory"


def shared_batches(config: RunConfig) -> int:
    """Most micro-batches of one rank in shared memory: those ready, the one just read, and on CPUs those of the step.

    An accelerator has copies of those of the step.
    """
    processes = data_processes(config)
    ready = processes * max(-(-config.data_prefetch_batches // processes), 1)
    passes = config.global_batch_images // config.resources.workers // config.images_per_pass
    return ready + 1 + (0 if config.resources.gpus_per_worker else passes)


def data_processes(config: RunConfig) -> int:
    """Number of data processes that make views for one rank."""
    return max(config.resources.data_cpus // config.resources.workers, 1)


def _follow(config: RunConfig) -> None:
    """Train as a rank other than 0; errors that all ranks share are reported by rank 0."""
    log_to_stderr("WARNING")
    try:
        with _process_group(config) as device:
            job = _broadcast(None)
            if job:
                _train(job, device)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except GracefulStop as stop:  # torchrun ends all ranks when one of them fails, and rank 0 has work to do yet
        raise SystemExit(0 if PATIENCE in str(stop) else RunStopped.exit_code) from None
    except Exception as error:
        is_common = isinstance(error, (ValueError, FloatingPointError)) and not isinstance(error, StorageError)
        if is_common or is_echo(error):
            raise SystemExit(1) from None
        raise RunFailedError(f"rank {os.environ['RANK']} stopped: {described(error)}") from None


@contextmanager
def _process_group(config: RunConfig) -> Iterator[torch.device]:
    """Process group of all ranks; yields the device of this one."""
    has_gpu = config.resources.gpus_per_worker > 0
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if has_gpu else torch.device("cpu")
    if has_gpu:
        os.environ |= allocator_settings(config.resources)  # before anything lies on the GPU
        torch.cuda.set_device(device)
    place: dict[str, Any] = {} if ranks() > 1 else {"store": HashStore(), "rank": 0, "world_size": 1}
    timeout = timedelta(seconds=config.most_wait_seconds)
    dist.init_process_group(BACKENDS[device.type], timeout=timeout, **place)
    try:
        with aborted_on_error(device, planned=(GracefulStop,)):
            yield device
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def _broadcast(what: Any) -> Any:
    """The value of `what` on rank 0."""
    told = [what]
    dist.broadcast_object_list(told, device=torch.device("cpu"))
    return told[0]


def _train(job: Job, device: torch.device) -> None:
    """Train on every rank; starts again where a checkpoint turns out to be damaged."""
    run, captions = _with_micro_batch(job[0], device), job[1]
    graceful_stop.ask("")  # whatever asked an earlier run of this process
    evaluator = _evaluator(run, str(device))
    is_evaluated = run.config.evaluate_every_steps is not None
    evaluate = partial(_evaluate_at_save, evaluator, background_group()) if is_evaluated else lambda metrics: None
    with signals_stop(lambda by: graceful_stop.ask(f"stopped by {by}")):
        while True:
            open_stream = partial(_opened_stream, run, captions, device.type == "cuda")
            try:
                train_worker(run, device, open_stream, evaluate, graceful_stop.asked)
                return
            except DamagedCheckpointError:
                pass  # it is marked now, so the one before is the newest


def _evaluator(run: Run, device: str) -> CheckpointEvaluator:
    return CheckpointEvaluator(run, lambda checkpoint: evaluate_checkpoint(run, checkpoint, device))


def _evaluate_at_save(
    evaluator: CheckpointEvaluator, group: dist.ProcessGroup | None, metrics: Mapping[str, float]
) -> None:
    """Evaluate on rank 0 what waits; the other ranks wait for it here, where a day is no timeout."""
    if rank() == 0:
        with alone():
            evaluator.advance_all(partial(_is_asked, evaluator.run))
        if evaluator.end is not None:
            graceful_stop.ask(f"stopped by {patience_words(evaluator.end)}")
    gather_objects(None, group)


def _is_asked(run: Run) -> bool:
    """Whether this rank was asked to leave, so that evaluations must wait for the next start."""
    return bool(graceful_stop.asked() or (run.generation and stop_asked(run.uri, run.generation)))


def _opened_stream(run: Run, captions: CaptionAccess | None, pin_memory: bool) -> tuple[int, Iterator[dict[str, Any]]]:
    """The step of the newest checkpoint, which rank 0 looks up, and this rank's micro-batches from there on."""
    step = _broadcast(run.resumed_step() if rank() == 0 else None)
    data = (run.config, run.index_uri, run.tokenizer_uri, captions)
    return step, local_stream(*data, step, rank(), world_size(), data_processes(run.config), pin_memory)


def _with_micro_batch(run: Run, device: torch.device) -> Run:
    """The run with a number for `micro_batch_images: auto`; each rank tries its own device."""
    if run.config.micro_batch_images != "auto":
        return run
    found = gather_objects(find(run, device))
    config = settled(run, found)
    if rank() == 0:
        keep(run.uri, found)
        tell("micro_batch", f"micro-batch {config.images_per_pass} images; {batches_fit_shared_memory(config)}")
    return replace(run, config=config)
