"""Run a function on several gloo ranks of this machine."""

import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "torch.testing", "tips_ray.train.step", "torch.distributed.checkpoint", "pytest"]
)
"""Modules imported once; every rank is a fork of the process that holds them."""


def run_on_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: int = 120
) -> list[Any]:
    """Results of `function(*arguments)` in rank order; it must be a module's own function.

    Raises:
        RuntimeError: a rank failed or did not finish; the message holds its error.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _CONTEXT.Process(target=_run, args=(rank, world_size, folder, function, arguments))
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(timeout_seconds)
        for process in processes:
            process.kill()
        return [_result(Path(folder, str(rank))) for rank in range(world_size)]


def _run(rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world_size)
    try:
        outcome = {"value": function(*arguments)}
    except BaseException as error:  # passed to the test, which raises
        outcome = {"error": f"{type(error).__name__}: {error}"}
    torch.save(outcome, Path(folder, f"{rank}.part"))
    Path(folder, f"{rank}.part").rename(Path(folder, str(rank)))
    if dist.is_initialized():
        dist.destroy_process_group()


def _result(path: Path) -> Any:
    if not path.exists():
        raise RuntimeError(f"rank {path.name} did not finish")
    outcome = torch.load(path, weights_only=False)
    if "error" in outcome:
        raise RuntimeError(f"rank {path.name}: {outcome['error']}")
    return outcome["value"]
