"""What stays in fp32 while the networks compute in bf16, in which a number has 8 bits."""

import math

import pytest
import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore
from toy import toy_batch, toy_config

from tips_ray.distributed import local_part
from tips_ray.train.checkpointing import checkpoint_parts
from tips_ray.train.parallelize import shard, worker_mesh
from tips_ray.train.state import TrainState, new_state


@pytest.fixture
def sharded_state():
    """In bf16, in a process group of one rank."""
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)

    def prepare(student, teacher):
        shard(student, teacher, worker_mesh("cpu"), torch.bfloat16)

    yield new_state(toy_config(), prepare=prepare)
    dist.destroy_process_group()


def _with_temperature(state: TrainState, temperature: float) -> TrainState:
    with torch.no_grad():
        local_part(state.student.log_temperature).fill_(math.log(temperature))
    return state


@pytest.mark.parametrize("temperature", [0.005, 0.0691])
def test_the_forward_sees_the_temperature_that_the_optimizer_has(sharded_state, temperature):
    """In bf16 log 0.005 is -5.3125 instead of -5.2983, and the logits are scaled by 203 instead of 200."""
    state = _with_temperature(sharded_state, temperature)
    batch = toy_batch(2).to("cpu")
    for log_temperature in (state.student(batch).log_temperature, state.student.embed(batch)[1]):
        assert (-log_temperature).exp().item() == pytest.approx(1 / temperature, rel=1e-6)


def test_its_gradient_is_that_of_fp32(sharded_state):
    outputs = sharded_state.student(toy_batch(2).to("cpu"))
    slope = 1 + 2**-12  # 1 in bf16
    (outputs.log_temperature * slope).sum().backward()
    assert local_part(sharded_state.student.log_temperature.grad).item() == slope


def test_embeddings_have_unit_norm_and_scores_of_cls_tokens_are_fp32(sharded_state):
    batch = toy_batch(4).to("cpu")
    outputs = sharded_state.student(batch)
    for embedding_BD in outputs.embeddings:
        assert embedding_BD.dtype == torch.float32
        torch.testing.assert_close(embedding_BD.norm(dim=-1), torch.ones(4), rtol=0, atol=1e-6)
    scores = sharded_state.teacher(batch, outputs.clean)
    expected = {torch.float32: (outputs.crop_scores, scores.cls), torch.bfloat16: (outputs.patch_scores, scores.patch)}
    for dtype, found in expected.items():
        assert {chunk_CK.dtype for each in found for chunk_CK in each.chunks()} == {dtype}


def test_checkpoints_keep_the_name_of_the_temperature(sharded_state):
    """Runs that began before it was a module of its own must go on."""
    tree, _ = checkpoint_parts(sharded_state)
    optimizer = tree["optimizer"]
    named = [name for group in optimizer["param_groups"] for name in group["params"]]
    for names in (tree["student"], optimizer["state"], named):
        assert "log_temperature" in names
        assert not [name for name in names if name.startswith("temperature.")]
