"""Adafactor against the paper's formulas written plainly, and over ranks against one process."""

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tips_ray.distributed import rank, world_size
from tips_ray.train.optim import Adafactor

SHAPES = {"matrix": (5, 3), "kernel": (4, 3, 2, 2), "bias": (5,), "token": (1, 1, 6), "temperature": (1,)}
LR, WEIGHT_DECAY, STEPS = 0.1, 0.2, 3


def _gradient(name: str, step: int) -> Tensor:
    """Large and small gradients, so that some updates are clipped."""
    generator = torch.Generator().manual_seed(100 * step + list(SHAPES).index(name))
    return torch.randn(SHAPES[name], generator=generator, dtype=torch.float64) * 10.0**step


def _network() -> nn.Module:
    network = nn.Module()
    for name, shape in SHAPES.items():
        count = torch.Size(shape).numel()
        network.register_parameter(name, nn.Parameter(torch.arange(1.0, count + 1, dtype=torch.float64).view(shape)))
    return network


def _plain_update(weight: Tensor, gradient: Tensor, moments: dict[str, Tensor], t: int) -> Tensor:
    """Algorithms 4 and 5 for one whole tensor."""
    beta, square = 1 - t**-0.8, gradient**2 + 1e-16
    if weight.ndim > 1 and weight.shape[0] > 1:
        square = square.reshape(len(weight), -1)
        moments["R"] = beta * moments.get("R", 0) + (1 - beta) * square.mean(dim=1)
        moments["C"] = beta * moments.get("C", 0) + (1 - beta) * square.mean(dim=0)
        second = torch.outer(moments["R"], moments["C"]) / moments["R"].mean()
    else:
        second = moments["V"] = beta * moments.get("V", 0) + (1 - beta) * square
    update = gradient / second.reshape(weight.shape).sqrt()
    update = update / max(1.0, update.square().mean().sqrt().item())
    return weight - LR * WEIGHT_DECAY * weight - LR * update


def _expected() -> dict[str, Tensor]:
    weights = {name: parameter.detach().clone() for name, parameter in _network().named_parameters()}
    for name in weights:
        moments: dict[str, Tensor] = {}
        for step in range(STEPS):
            weights[name] = _plain_update(weights[name], _gradient(name, step), moments, step + 1)
    return weights


def _updated() -> dict[str, Tensor]:
    """Weights after the steps; on several ranks they are sharded, on four also replicated."""
    network = _network()
    if world_size() > 1:
        sizes, names = ((2, 2), ("replica", "shard")) if world_size() == 4 else ((world_size(),), ("shard",))
        fully_shard(network, mesh=init_device_mesh("cpu", sizes, mesh_dim_names=names))
    optimizer = Adafactor([{"params": list(network.parameters()), "lr": LR, "weight_decay": WEIGHT_DECAY}])
    for step in range(STEPS):
        for name, parameter in network.named_parameters():
            parameter.grad = _like(_gradient(name, step), parameter)
        optimizer.step()
    values = dict(network.named_parameters())
    return {n: p.full_tensor().detach() if isinstance(p, DTensor) else p.detach() for n, p in values.items()}


def _like(whole: Tensor, parameter: nn.Parameter) -> Tensor:
    """`whole`, or its shard where the parameter is sharded."""
    if not isinstance(parameter, DTensor):
        return whole
    shards = parameter.device_mesh.size(-1)
    parts = [*whole.chunk(shards), *[whole[:0]] * shards]
    local = parts[rank() % shards].contiguous()
    mesh, placements = parameter.device_mesh, parameter.placements
    return DTensor.from_local(local, mesh, placements, run_check=False, shape=whole.shape, stride=whole.stride())


def test_updates_are_those_of_the_paper():
    torch.testing.assert_close(_updated(), _expected(), atol=1e-12, rtol=1e-12)


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", [pytest.param(2, marks=pytest.mark.variant), 4])
def test_shards_of_any_size_are_updated_as_the_whole_is(ranks):
    for outcome in run_on_ranks(ranks, _updated):
        torch.testing.assert_close(outcome, _expected(), atol=1e-12, rtol=1e-12)


def test_a_parameter_without_gradient_stays_and_does_not_age():
    network = _network()
    optimizer = Adafactor([{"params": list(network.parameters()), "lr": LR, "weight_decay": WEIGHT_DECAY}])
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    network.matrix.grad = _gradient("matrix", 0)
    optimizer.step()
    moved = {name for name, parameter in network.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name, p in network.named_parameters() if optimizer.state[p]["step"] == 1} == {"matrix"}
