"""FSDP2 over gloo ranks gives the training of one process."""

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from toy import rows, toy_batch, toy_config

from tips_ray.distributed import rank, world_size
from tips_ray.train.parallelize import shard
from tips_ray.train.state import new_state
from tips_ray.train.step import train_step

IMAGES, STEPS = 8, 3


def _trained(micro_batches: int) -> dict[str, Tensor]:
    """Student, teacher and centres after some steps, whole, and the share of the parameters that this rank held."""
    torch.set_default_dtype(torch.float64)
    try:
        config = toy_config(image__drop_path_rate=0.2, objective__prototype_freeze=0.1)
        sharded = world_size() > 1
        mesh = init_device_mesh("cpu", (world_size(),)) if sharded else None
        state = new_state(config, prepare=(lambda s, t: shard(s, t, mesh, torch.float64)) if mesh else None)
        size = IMAGES // world_size() // micro_batches
        for step in range(STEPS):
            batch, first = toy_batch(IMAGES, seed=step, invalid=(3,)), rank() * size * micro_batches
            micro = [rows(batch, first + i * size, first + (i + 1) * size) for i in range(micro_batches)]
            train_step(state, micro, config)
    finally:
        torch.set_default_dtype(torch.float32)
    networks = {"student": state.student, "teacher": state.teacher, "centers": state.centers}
    tensors = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    held = sum(value.to_local().numel() for value in tensors.values() if isinstance(value, DTensor))
    whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in tensors.items()}
    return {**whole, "held": torch.tensor(held)}


@pytest.mark.heavy
def test_sharded_training_equals_one_process_with_and_without_micro_batches():
    expected = _trained(1)
    expected.pop("held")
    total = sum(value.numel() for key, value in expected.items() if not key.startswith("centers"))
    for ranks, micro_batches in ((2, 1), (2, 2)):
        outcomes = run_on_ranks(ranks, _trained, micro_batches)
        assert sum(outcome.pop("held").item() for outcome in outcomes) == total
        for outcome in outcomes:
            torch.testing.assert_close(outcome, expected, atol=1e-8, rtol=1e-8)


def test_each_of_two_ranks_holds_about_half_of_every_network():
    held = [outcome["held"].item() for outcome in run_on_ranks(2, _trained, 1)]
    assert abs(held[0] - held[1]) < 0.1 * sum(held)
