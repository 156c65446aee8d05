"""Training without Ray: in this process, or as one of the ranks that torchrun has started.

Rank 0 is the driver too: it checks, claims the run folder, tells the others what to do, and tracks. The others join
the process group, where they wait for it, and then train.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

    from tips_ray.config import RunConfig
    from tips_ray.data.stream import StreamInputs
    from tips_ray.runs.run import RunInputs

SHARED_MEMORY = Path("/dev/shm")
"""Data processes hand their batches over in it (Linux)."""


def ranks() -> int:
    """As torchrun set them, 1 without it."""
    return int(os.environ.get("WORLD_SIZE", 1))


def on_these_ranks(config: "RunConfig") -> "RunConfig":
    """The config with as many `resources.workers` as there are ranks.

    Raises:
        ValueError: the global batch cannot be shared out among them.
    """
    from tips_ray.config import RunConfig, override

    return override(
        RunConfig, config.model_dump(mode="json"), {"resources.workers": ranks(), "resources.min_workers": None}
    )


def checks(config: "RunConfig") -> dict[str, Callable[[], str]]:
    """Those that take the place of Ray's, see `preflight`."""
    return {
        "captions": lambda: captions_are_there(config),
        "resources": lambda: resources_suffice(config),
        "stream": lambda: batches_fit_shared_memory(config),
    }


def captions_are_there(config: "RunConfig") -> str:
    """In the data or in a store; nobody makes them beside training."""
    from tips_ray.launch.checks import captions_come

    if config.captions.source == "live":
        raise ValueError(
            "captions.source (live) needs Ray: run tips-ray caption with this config, then train with "
            "captions.source=store"
        )
    return captions_come(config)


def resources_suffice(config: "RunConfig") -> str:
    """A GPU for every rank of this machine, where GPUs are asked for."""
    from tips_ray.errors import Doubt
    from tips_ray.launch.cluster import gpus_here

    wanted, here, local = config.resources.gpus_per_worker, gpus_here(), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if wanted and local > here:
        raise ValueError(
            f"resources.gpus_per_worker ({wanted:g}): {local} ranks of this machine need a GPU each, there are {here}: "
            "start fewer ranks, or set it to 0 to train on CPUs"
        )
    if here and not wanted:
        raise Doubt(f"trains on CPUs, though this machine has {here} GPUs: set resources.gpus_per_worker=1")
    on = "a GPU each" if wanted else "CPUs"
    return f"without Ray, {ranks()} ranks on {on}, {data_processes(config)} data processes for each"


def batches_fit_shared_memory(config: "RunConfig") -> str:
    """What waits ready for the ranks of this machine, and is in use."""
    from tips_ray.launch.sizes import bytes_text, row_bytes

    if config.micro_batch_images == "auto":
        return f"{bytes_text(row_bytes(config))} a row; micro_batch_images (auto) is found before the first step"
    rows = config.images_per_pass * int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    ready = (1 + max(config.data_prefetch_batches, data_processes(config))) * rows * row_bytes(config)
    have = shutil.disk_usage(SHARED_MEMORY).free if SHARED_MEMORY.exists() else None
    if have is not None and ready > have:
        raise ValueError(
            f"data_prefetch_batches ({config.data_prefetch_batches}) and resources.data_cpus keep {bytes_text(ready)} "
            f"of crops ready, {SHARED_MEMORY} has {bytes_text(have)}: lower them, set micro_batch_images, or give the "
            "container more (docker run --shm-size)"
        )
    return f"{bytes_text(row_bytes(config))} a row, {bytes_text(ready)} ready in shared memory"


def data_processes(config: "RunConfig") -> int:
    """That make views for one rank."""
    return max(config.resources.data_cpus // config.resources.workers, 1)


def pretrain(config: "RunConfig") -> str | None:
    """Run or resume `config` on these ranks; the run folder's URI on rank 0, None on the others.

    Raises:
        RunFailedError: training stopped.
        SystemExit: it stopped, and another rank says why.
    """
    from jobs.pretrain import pretrain as pretrain_by

    if int(os.environ.get("RANK", 0)):
        return _follow(config)
    led: list[str] = []

    def lead(stream: "StreamInputs", run: "RunInputs") -> None:
        led.append(run.uri)
        _lead(stream, run)

    uri = pretrain_by(config, lead, checks(config))
    if not led and ranks() > 1:  # complete: the others wait to hear it
        with _process_group(config):
            _told(None)
    return uri


def _lead(stream: "StreamInputs", run: "RunInputs") -> None:
    from tips_ray.launch.failure import told_failures
    from tips_ray.launch.progress import shown_progress
    from tips_ray.runs.folder import RunFolder
    from tips_ray.runs.run import resumed_step

    folder = RunFolder(run.uri)
    with told_failures(folder, (Exception,)), shown_progress(folder, run.config.schedule.total_steps):
        with _process_group(run.config) as device:
            _train(*_told((stream, run, resumed_step(run))), device=device)


def _follow(config: "RunConfig") -> None:
    """What rank 0 has in common with this one, it tells."""
    from tips_ray.errors import RunFailedError, described, is_echo
    from tips_ray.storage import StorageError

    try:
        with _process_group(config) as device:
            job = _told(None)
            if job:
                _train(*job, device=device)
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:
        is_common = isinstance(error, (ValueError, FloatingPointError)) and not isinstance(error, StorageError)
        if is_common or is_echo(error):
            raise SystemExit(1) from None
        raise RunFailedError(f"rank {os.environ['RANK']} stopped: {described(error)}") from None


@contextmanager
def _process_group(config: "RunConfig") -> "Iterator[torch.device]":
    """All ranks, and the device of this one."""
    import torch
    import torch.distributed as dist
    from torch._C._distributed_c10d import HashStore

    is_gpu = bool(config.resources.gpus_per_worker)
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if is_gpu else torch.device("cpu")
    if is_gpu:
        torch.cuda.set_device(device)
    place: dict[str, Any] = {} if ranks() > 1 else {"store": HashStore(), "rank": 0, "world_size": 1}
    dist.init_process_group("cpu:gloo,cuda:nccl" if is_gpu else "gloo", **place)
    try:
        yield device
    finally:
        dist.destroy_process_group()


def _told(job: Any) -> Any:
    """What rank 0 brings."""
    import torch
    import torch.distributed as dist

    jobs = [job]
    dist.broadcast_object_list(jobs, device=torch.device("cpu"))
    return jobs[0]


def _train(stream: "StreamInputs", run: "RunInputs", first_step: int, device: "torch.device") -> None:
    from tips_ray.data.local_stream import local_stream
    from tips_ray.distributed import rank, world_size
    from tips_ray.train.worker_loop import run_attempt

    if run.config.micro_batch_images == "auto":
        config = _with_micro_batch(run, device)
        stream, run = replace(stream, config=config), replace(run, config=config)

    def open_stream() -> tuple[int, Iterator[dict[str, Any]]]:
        processes, is_pinned = data_processes(run.config), device.type == "cuda"
        return first_step, local_stream(stream, first_step, rank(), world_size(), processes, is_pinned)

    run_attempt(run, device, open_stream, lambda metrics: None)


def _with_micro_batch(run: "RunInputs", device: "torch.device") -> "RunConfig":
    """The config with a number for `micro_batch_images: auto`; each rank tries its own device."""
    from tips_ray.distributed import gather_objects, rank
    from tips_ray.train.micro_batch import find, keep, settled

    found = gather_objects(find(run, device))
    config = settled(run, found)
    if rank() == 0:
        keep(run.uri, found)
        print(f"micro-batch {config.images_per_pass} images; {batches_fit_shared_memory(config)}", flush=True)
    return config
