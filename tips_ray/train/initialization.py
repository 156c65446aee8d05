"""First values of networks that were made, and possibly sharded, without storage: the same on any number of ranks."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from tips_ray.distributed import local_part, sum_over_ranks
from tips_ray.models.layers import initialize


@torch.no_grad()
def give_storage(network: nn.Module, device: torch.device | str) -> None:
    """Storage for every parameter and buffer on this rank, full of NaN."""
    network.to_empty(device=device)
    for tensor in chain(network.parameters(), network.buffers()):
        local_part(tensor).fill_(torch.nan)


def draw(network: nn.Module, seed: int) -> None:
    """Fill every parameter, one module after the other, from a generator keyed by (seed, name of the module).

    Each rank draws the whole parameters of one module, on the CPU, and keeps its shards of them: no rank ever holds the
    network, and values depend neither on the number of ranks nor on what else is drawn.
    """
    with torch.random.fork_rng(devices=()), torch.no_grad():
        for name, module in network.named_modules():
            with _whole_parameters(module):
                torch.default_generator.manual_seed(_key(seed, name))
                initialize(module)


@torch.no_grad()
def copy_shards(target: nn.Module, source: nn.Module) -> None:
    """Give the parameters of `target` the values that `source`, sharded alike, has under the same names."""
    values = dict(source.named_parameters())
    for name, parameter in target.named_parameters():
        local_part(parameter).copy_(local_part(values[name]))


def require_values(*networks: nn.Module) -> None:
    """All ranks call this, and all of them raise.

    Raises:
        RuntimeError: some parameters or buffers have NaN; they are named.
    """
    named = [entry for net in networks for entry in chain(net.named_parameters(), net.named_buffers())]
    nans = sum_over_ranks(torch.stack([local_part(tensor).isnan().sum() for _, tensor in named])).tolist()
    missing = [name for (name, _), count in zip(named, nans, strict=True) if count]
    if missing:
        raise RuntimeError(f"{', '.join(missing)}: no initial value; `initialize` must know the module's kind")


@contextmanager
def _whole_parameters(module: nn.Module) -> Iterator[None]:
    """The module's own parameters are whole and full of NaN inside; outside, its shards have what was put there."""
    shards = {name: parameter for name, parameter in module._parameters.items() if parameter is not None}
    for name, shard in shards.items():
        module._parameters[name] = nn.Parameter(torch.full(shard.shape, torch.nan, dtype=shard.dtype))
    yield
    for name, shard in shards.items():
        whole, module._parameters[name] = module._parameters[name], shard
        assert whole is not None
        local_part(shard).copy_(_part(whole, shard))


def _part(whole: nn.Parameter, shard: nn.Parameter) -> Tensor:
    if not isinstance(shard, DTensor):
        return whole
    return distribute_tensor(whole.detach(), shard.device_mesh, shard.placements, src_data_rank=None).to_local()


def _key(seed: int, name: str) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {name}".encode()).digest()[:8])
