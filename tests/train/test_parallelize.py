"""Recomputation and compilation change time and memory, never numbers or names."""

from collections import Counter

import pytest
import torch
from operator_calls import OperatorCalls
from torch._dynamo.utils import counters
from toy import toy_batch, toy_config

from tips_ray.config import TrainConfig
from tips_ray.train.parallelize import apply_recomputation, compile_blocks
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import accumulate_gradients

aten = torch.ops.aten


def _state(config: TrainConfig, mode) -> TrainState:
    state = new_state(config)
    for network in (state.student, state.teacher, state.centers):
        network.double()
    apply_recomputation(state.student, mode)
    return state


def _outcome(config: TrainConfig, mode, compiled: bool = False) -> list:
    state = _state(config, mode)
    if compiled:
        compile_blocks(state.student, backend="aot_eager")
        compile_blocks(state.teacher, backend="aot_eager")
    terms, sums = accumulate_gradients(state, [toy_batch(4)], config.objective, config.schedule.total_steps)
    gradients = {name: parameter.grad for name, parameter in state.student.named_parameters()}
    return [terms, sums, gradients]


def _calls(mode) -> Counter:
    state, batch = _state(config := toy_config(), mode), toy_batch(4)
    with OperatorCalls() as calls:
        accumulate_gradients(state, [batch], config.objective, config.schedule.total_steps)
    return calls.counts


@pytest.mark.parametrize("drop_path_rate", [0.0, 0.4])
@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recomputation_leaves_every_loss_gradient_and_name_as_it_was(mode, drop_path_rate):
    config = toy_config(image__drop_path_rate=drop_path_rate)
    torch.testing.assert_close(_outcome(config, mode), _outcome(config, "none"), atol=1e-10, rtol=1e-10)


def test_full_recomputation_repeats_the_matrix_products_of_the_blocks_and_selective_none():
    none, selective, full = (_calls(mode) for mode in ("none", "selective", "full"))
    products, norm = aten.addmm.default, aten.native_layer_norm.default
    image, text = toy_config().image.depth, toy_config().text.depth
    assert selective[products] == none[products]
    # qkv, proj, fc1, fc2; without LayerScale nothing needs what fc2 gave.
    assert full[products] == none[products] + 4 * image + 3 * text
    assert full[norm] == selective[norm] == none[norm] + 2 * (image + text)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "mode", ["selective", *(pytest.param(mode, marks=pytest.mark.variant) for mode in ("none", "full"))]
)
def test_compiled_blocks_give_the_same_numbers_from_one_graph_per_kind_of_block(mode):
    torch.compiler.reset()
    counters.clear()
    config = toy_config(image__drop_path_rate=0.4)
    torch.testing.assert_close(_outcome(config, mode, compiled=True), _outcome(config, "none"), atol=1e-10, rtol=1e-10)
    assert counters["stats"]["unique_graphs"] == 3 + 4  # images, texts, teacher; two heads of student and teacher
    assert not counters["graph_break"]


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="mode \\('some'\\)"):
        apply_recomputation(torch.nn.Identity(), "some")  # pyright: ignore[reportArgumentType]
