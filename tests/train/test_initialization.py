"""First values: every parameter is drawn once, the same on any number of ranks."""

import math

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from toy import toy_config
from toy_state import assert_equal, trained

from tips_ray.config import TrainConfig
from tips_ray.distributed import rank, world_size
from tips_ray.train import state
from tips_ray.train.checkpointing import load_checkpoint, save_checkpoint
from tips_ray.train.parallelize import apply_recomputation, compile_blocks, shard, worker_mesh
from tips_ray.train.state import TrainState, draw, draw_values, give_storage, new_state, require_values


def _prepare(student, teacher) -> None:
    apply_recomputation(student, "full")
    compile_blocks(student, backend="eager")
    shard(student, teacher, worker_mesh("cpu", 2 if world_size() == 4 else 1))


def _whole(state: TrainState) -> dict[str, Tensor]:
    named = [*state.student.state_dict(prefix="student.").items(), *state.teacher.state_dict(prefix="teacher.").items()]
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in named}


def _first_values() -> dict[str, Tensor]:
    return _whole(new_state(toy_config(seed=3), prepare=_prepare))


@pytest.mark.heavy
@pytest.mark.parametrize("ranks", [*(pytest.param(ranks, marks=pytest.mark.variant) for ranks in (1, 2)), 4])
def test_first_values_are_bitwise_those_of_one_process_on_any_number_of_ranks(ranks):
    expected = _whole(new_state(toy_config(seed=3)))
    for outcome in run_on_ranks(ranks, _first_values):
        torch.testing.assert_close(outcome, expected, atol=0, rtol=0)


def _student(**values) -> dict[str, Tensor]:
    return new_state(toy_config(**values)).student.state_dict()


def test_values_follow_the_seed_and_the_name_and_leave_the_random_state_alone():
    before = torch.get_rng_state()
    first, again, other, deeper = _student(), _student(), _student(seed=1), _student(image__depth=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.testing.assert_close(again, first, atol=0, rtol=0)
    torch.testing.assert_close({name: deeper[name] for name in first}, first, atol=0, rtol=0)
    name = "image.blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], other[name])
    assert not torch.equal(first[name], first["image.blocks.1.attn.qkv.weight"])
    heads = [first[f"heads.{head}.prototypes"] for head in ("distillation", "masked_image")]
    assert not torch.equal(*heads)


def test_the_distributions_are_the_decided_ones():
    values = _student(image__width=128, text__width=128, image__layer_scale_init=0.1, text__vocab_size=500)
    qkv, patch = values["image.blocks.0.attn.qkv.weight"], values["image.patch_embed.proj.weight"]
    bound = math.sqrt(6 / (128 + 3 * 128))
    assert 0.99 * bound < qkv.abs().max() <= bound and qkv.std().item() == pytest.approx(bound / 3**0.5, rel=0.02)
    assert patch.std().item() == pytest.approx(2 / math.sqrt(3 * 14 * 14), rel=0.02)
    torch.testing.assert_close(values["image.patch_embed.proj.bias"], -patch.sum(dim=(1, 2, 3)) / 2)
    assert values["text.token_embedding.weight"].std().item() == pytest.approx(128**-0.5, rel=0.02)
    assert values["image.pos_embed"].std().item() == pytest.approx(0.02, rel=0.1)
    assert (values["image.blocks.1.ls1.gamma"] == 0.1).all() and (values["image.norm.weight"] == 1).all()
    assert not any(values[name].any() for name in ("image.mask_token", "image.blocks.0.mlp.fc1.bias", "text.norm.bias"))
    assert values["temperature.log_temperature"].item() == pytest.approx(math.log(0.07))


def test_the_teacher_starts_as_a_copy_of_the_student():
    state = new_state(toy_config())
    student = state.student.state_dict()
    for name, value in state.teacher.state_dict().items():
        torch.testing.assert_close(value, student[name], atol=0, rtol=0)
        assert value.data_ptr() != student[name].data_ptr()


class _Odd(nn.Module):
    """A parameter and a buffer without a known initialization."""

    def __init__(self) -> None:
        super().__init__()
        self.known, self.unknown = nn.Linear(3, 2), nn.Parameter(torch.zeros(1))
        self.register_buffer("count", torch.zeros(2))


def _odd() -> None:
    with torch.device("meta"):
        network = _Odd()
    give_storage(network, "cpu")
    draw(network, 0)
    if world_size() > 1 and rank() == 0:
        network.unknown.data.zero_()  # as if this rank held no row of it
    require_values(network)


@pytest.mark.heavy
def test_what_has_no_value_is_named_on_every_rank():
    for ranks in (1, 2):
        with pytest.raises(RuntimeError, match="unknown, count: no initial value"):
            run_on_ranks(ranks, _odd)


def _most_held(config: TrainConfig) -> int:
    """Most numbers of the student that were whole at one time."""
    held, plain = [], state.initialize

    def counted(module: nn.Module) -> None:
        held.append(sum(p.numel() for p in state_student.parameters() if not isinstance(p, DTensor)))
        plain(module)

    def prepare(student, teacher) -> None:
        nonlocal state_student
        _prepare(state_student := student, teacher)

    state_student, state.initialize = nn.Module(), counted
    new_state(config, prepare=prepare)
    return max(held)


@pytest.mark.slow
def test_no_rank_holds_more_than_one_module_whole():
    patch_embedding = 3 * 14 * 14 * 32 + 32  # the largest of the toy
    assert run_on_ranks(2, _most_held, toy_config(), fresh=True) == [patch_embedding] * 2


@pytest.mark.parametrize("teacher", ["ema", "ema_heads"])
def test_a_state_for_a_checkpoint_draws_nothing_and_the_checkpoint_fills_all_of_it(teacher, tmp_path, monkeypatch):
    config = toy_config(objective__teacher=teacher)
    source = trained(new_state(config), 1, objective__teacher=teacher)
    saved = save_checkpoint(source, str(tmp_path), {})
    monkeypatch.setattr(state, "draw", None)
    empty = new_state(config, is_drawn=False)
    for network in (empty.student, empty.teacher):
        assert all(parameter.isnan().all() for parameter in network.parameters())
    load_checkpoint(empty, saved)
    assert_equal(empty, source)
    assert not any(value.isnan().any() for value in _whole(empty).values())


def test_a_state_that_is_drawn_later_is_that_which_is_drawn_at_once():
    late = new_state(toy_config(seed=3), is_drawn=False)
    draw_values(late, seed=3)
    torch.testing.assert_close(_whole(late), _whole(new_state(toy_config(seed=3))), atol=0, rtol=0)
