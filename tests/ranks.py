"""Run a function on several gloo ranks of this machine.

The processes stay for the next tests, which may take fewer or more of them: DTensor remembers how it splits each
operator, so a rank takes its second sharded step six times faster than its first. After each function its environment
variables, the default dtype and the random state are put back. A function that changes anything else, or ends its
process or its group, asks for `fresh` ranks.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from costs import waiting

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["torch", "torch.testing", "tips_ray.train.step", "torch.distributed.checkpoint", "pytest"]
)
"""Modules imported once; every rank is a fork of the process that holds them."""


class _Rank(NamedTuple):
    process: BaseProcess
    connection: Connection

    def ended(self, timeout_seconds: float) -> bool:
        """Whether the function has ended within the time, with a result or an error."""
        try:
            return self.connection.poll(timeout_seconds) and bool(self.connection.recv())
        except EOFError:
            return False

    def kill(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


_kept: list[_Rank] = []
"""The first of them are the ranks of the next test."""


def run_on_ranks(
    world_size: int, function: Callable[..., Any], *arguments: Any, timeout_seconds: int = 120, fresh: bool = False
) -> list[Any]:
    """Results of `function(*arguments)` in rank order; it must be a module's own function.

    Args:
        fresh: take new processes, which end with the function, instead of those of earlier tests.

    Raises:
        RuntimeError: a rank failed or did not finish; the message holds its error.
    """
    if not fresh:
        _kept.extend(_started(max(world_size - len(_kept), 0)))
    ranks = _started(world_size, stay=False) if fresh else _kept[:world_size]
    with waiting("ranks"), tempfile.TemporaryDirectory() as folder:
        for place, rank in enumerate(ranks):
            rank.connection.send((place, world_size, folder, function, arguments))
        is_whole = all([rank.ended(timeout_seconds) for rank in ranks])
        if fresh or not is_whole:
            for rank in ranks:
                rank.kill()
        if not (fresh or is_whole):
            del _kept[:world_size]
        return [_result(Path(folder, str(rank))) for rank in range(world_size)]


def _started(count: int, stay: bool = True) -> list[_Rank]:
    ranks = []
    with waiting("ranks", count):
        for _ in range(count):
            ours, its = _CONTEXT.Pipe()
            process = _CONTEXT.Process(target=_serve, args=(its, stay), daemon=True)
            process.start()
            its.close()
            ranks.append(_Rank(process, ours))
    return ranks


def _serve(connection: Connection, stay: bool) -> None:
    torch.set_num_threads(1)
    environment = dict(os.environ)
    while True:
        _run(*connection.recv())
        connection.send(True)
        if not stay:
            return
        os.environ.clear()
        os.environ.update(environment)
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)


def _run(rank: int, world_size: int, folder: str, function: Callable[..., Any], arguments: tuple) -> None:
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
