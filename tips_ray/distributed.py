"""All collectives of the library. Without a process group every function acts as on one rank. N = B x ranks."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.tensor import DTensor

BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
"""Backends of the process group by the type of the ranks' devices: small objects and waits never go through a GPU."""
NCCL_SECONDS = 300
"""(D) Timeout of collectives on GPUs after the first step: ranks enter them within seconds, or compile a new shape."""
Item = TypeVar("Item")
_is_alone = ContextVar("_is_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Inside, this process acts as one rank by itself, for work that needs no other rank."""
    token = _is_alone.set(True)
    try:
        yield
    finally:
        _is_alone.reset(token)


def rank() -> int:
    """Rank of this process in the group; 0 without a group."""
    return dist.get_rank() if dist.is_initialized() and not _is_alone.get() else 0


def world_size() -> int:
    """Number of processes in the group; 1 without a group."""
    return dist.get_world_size() if dist.is_initialized() and not _is_alone.get() else 1


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a sharded tensor, in the same storage; the whole tensor if it is not sharded."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def gather_batch(local_BD: Tensor) -> Tensor:
    """Rows of all ranks in rank order, [N, D]; B must be the same on every rank.

    The gradient flows back to the rank that owns a row, summed over the ranks that used it. Without this the loss value
    would be right, but its gradient wrong.
    """
    return _Gather.apply(local_BD) if world_size() > 1 else local_BD


def sum_over_ranks(local: Tensor) -> Tensor:
    """Element-wise sum over ranks, without gradient."""
    total = local.detach().clone()
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def mean_over_ranks(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    """Mean over ranks of each scalar, on the host: waits for the device."""
    return dict(zip(metrics, means_over_ranks(metrics).tolist(), strict=True))


def means_over_ranks(metrics: Mapping[str, Tensor]) -> Tensor:
    """Mean over ranks of each scalar, float64 on their device, in one collective."""
    values = torch.stack([metrics[name].detach().double().reshape(()) for name in metrics])
    return sum_over_ranks(values) / world_size()


class HostCopy:
    """A copy of a tensor on its way to pinned memory of the host; nothing waits before `values`."""

    def __init__(self, tensor: Tensor) -> None:
        self._copy = tensor.to("cpu", non_blocking=True)
        self._arrival = torch.cuda.Event() if tensor.is_cuda else None
        if self._arrival:
            self._arrival.record()

    def values(self) -> list[float]:
        """The numbers, once they have arrived."""
        if self._arrival:
            self._arrival.synchronize()
        return self._copy.tolist()


def gather_objects(local: Any, group: dist.ProcessGroup | None = None) -> list[Any]:
    """Small picklable values of all ranks in rank order; `group` is a `background_group`, or None for training's group.

    Raises:
        RuntimeError: a rank was lost, or the group was ended (it then does not count as a single rank).
    """
    size = world_size() if group is None else group.size()
    if size == 1:
        return [local]
    gathered: list[Any] = [None] * size
    dist.all_gather_object(gathered, local, group=group)
    return gathered


def background_group() -> dist.ProcessGroup | None:
    """A second group of all ranks, on CPUs, for one thread beside training. All ranks must call this.

    A lost rank ends its collectives at once; a slow rank has a day.
    """
    if not dist.is_initialized():
        return None
    group = dist.new_group(backend="gloo", timeout=timedelta(days=1))
    assert isinstance(group, dist.ProcessGroup)
    return group


def meeting(
    items: Iterable[Item], group: dist.ProcessGroup | None = None, note_wait: Callable[[float], None] = lambda _: None
) -> Iterator[Item]:
    """The items, each once all ranks have theirs; all ranks have equally many.

    A rank that waits for data or storage is no fault, so the others wait for it here, on CPUs, with the long timeout,
    and not in a collective of GPUs, whose timeout is short (`limit_waits`).

    Args:
        items: of this rank.
        group: with a backend for CPUs; None: training's.
        note_wait: called with the seconds that this rank waited for the others.

    Raises:
        RuntimeError: a rank was lost, or did not come.
    """
    for item in items:
        started = time.perf_counter()
        dist.all_reduce(torch.zeros(()), group=group)
        note_wait(time.perf_counter() - started)
        yield item


def limit_waits(device_type: str, seconds: float, groups: Iterable[dist.ProcessGroup] | None = None) -> None:
    """Let collectives on one type of device fail after `seconds`, those on others when they did before.

    Args:
        device_type: such as "cuda".
        seconds: from the start of a collective.
        groups: None: all of this process.
    """
    device = torch.device(device_type)
    for group in distributed_c10d._world.pg_map if groups is None else groups:
        backend = group._get_backend(device) if device in group._device_types else None
        if set_timeout := getattr(backend, "_set_default_timeout", None):  # a fake backend has none
            set_timeout(timedelta(seconds=seconds))


@contextmanager
def aborted_on_error(device: torch.device, planned: tuple[type[BaseException], ...] = ()) -> Iterator[None]:
    """Where the block fails on a GPU with an error that is not `planned`, abort all process groups.

    Ending them in the ordinary way would wait for collectives of which other ranks may have no part any more.
    """
    try:
        yield
    except BaseException as error:
        if device.type == "cuda" and dist.is_initialized() and not isinstance(error, planned):
            distributed_c10d._abort_process_group()
        raise


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx, local_BD: Tensor) -> Tensor:
        gathered_ND = local_BD.new_empty(world_size() * len(local_BD), *local_BD.shape[1:])
        dist.all_gather_into_tensor(gathered_ND, local_BD.contiguous())
        return gathered_ND

    @staticmethod
    def backward(ctx, *grad_outputs: Tensor) -> Tensor:
        grad_ND = grad_outputs[0]
        grad_BD = grad_ND.new_empty(len(grad_ND) // world_size(), *grad_ND.shape[1:])
        dist.reduce_scatter_tensor(grad_BD, grad_ND.contiguous())
        return grad_BD
