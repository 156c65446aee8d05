"""FSDP2 over gloo ranks gives the training of one process."""

from typing import Any

import pytest
import torch
from operator_calls import OperatorCalls
from ranks import run_on_ranks
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.distributed.fsdp._fully_shard._fsdp_common import TrainingState
from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup
from torch.distributed.tensor import DTensor, Shard
from toy import rows, toy_batch, toy_config

from tips_ray.batch import Batch
from tips_ray.distributed import mean_over_ranks, rank, world_size
from tips_ray.planning.step_trace import fake_group
from tips_ray.train.parallelize import apply_recomputation, compile_blocks, shard, worker_mesh
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import accumulate_gradients, train_step

IMAGES, STEPS = 8, 3
RUN = {"image__drop_path_rate": 0.2, "objective__prototype_freeze": 0.1, "optimizer__max_grad_norm": 0.5}
ADAFACTOR = {"optimizer__name": "adafactor"}


def _new(replicas: int, compiled: bool = False, **values: Any) -> TrainState:
    """A float64 state, sharded if there are several ranks; then it may be recomputed and compiled as well."""

    def prepare(student, teacher):
        if compiled:
            apply_recomputation(student, "selective")
            compile_blocks(student, backend="aot_eager")
            compile_blocks(teacher, backend="aot_eager")
        shard(student, teacher, worker_mesh("cpu", replicas), torch.float64)

    torch.set_default_dtype(torch.float64)
    try:
        return new_state(toy_config(**RUN, **values), prepare=prepare if world_size() > 1 else None)
    finally:
        torch.set_default_dtype(torch.float32)


def _trained(micro_batches: int = 1, replicas: int = 1, compiled: bool = False, **values: Any) -> dict[str, Tensor]:
    """Student, teacher and centres after some steps, whole, and the gradient norm of each step."""
    state, config = _new(replicas, compiled, **values), toy_config(**RUN, **values)
    size, norms = IMAGES // world_size() // micro_batches, []
    for step in range(STEPS):
        batch, first = toy_batch(IMAGES, seed=step, invalid=(3,)), rank() * size * micro_batches
        micro = [rows(batch, first + i * size, first + (i + 1) * size) for i in range(micro_batches)]
        norms.append(train_step(state, micro, config)["grad_norm"])
    whole = {
        key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in _tensors(state).items()
    }
    return {**whole, "grad_norm": torch.stack(norms)}


def _tensors(state: TrainState) -> dict[str, Tensor]:
    networks = {"student": state.student, "teacher": state.teacher, "centers": state.centers}
    return {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}


def _over_ranks(ranks: int, *arguments: Any, **values: Any) -> list[dict[str, Tensor]]:
    return run_on_ranks(ranks, _trained_with, arguments, values)


def _trained_with(arguments: tuple, values: dict[str, Any]) -> dict[str, Tensor]:
    return _trained(*arguments, **values)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("ranks", "micro_batches", "replicas", "values"),
    [(2, 2, 1, {}), pytest.param(4, 1, 2, ADAFACTOR, marks=pytest.mark.slow)]
    + [pytest.param(*one, marks=pytest.mark.variant) for one in ((2, 1, 1, {}), (4, 1, 2, {}), (2, 1, 1, ADAFACTOR))],
)
def test_sharded_training_equals_one_process(ranks, micro_batches, replicas, values):
    expected = _trained(**values)
    assert (expected["grad_norm"] > RUN["optimizer__max_grad_norm"]).all()  # every step is clipped
    for outcome in _over_ranks(ranks, micro_batches, replicas, **values):
        torch.testing.assert_close(outcome, expected, atol=1e-8, rtol=1e-8)


@pytest.mark.parametrize(
    ("dtype", "steps", "bound"),
    [
        pytest.param(torch.float32, 30, 1e-5, marks=pytest.mark.slow),
        pytest.param(torch.float64, 200, 1e-8, marks=pytest.mark.variant),
    ],
)
def test_the_losses_of_a_run_do_not_depend_on_the_number_of_ranks(dtype, steps, bound):
    (expected,) = run_on_ranks(1, _losses, dtype, steps)
    assert expected[-1] < 0.9 * expected[0]
    for ranks in (2, 4):
        for losses in run_on_ranks(ranks, _losses, dtype, steps):
            torch.testing.assert_close(losses, expected, atol=bound, rtol=bound)


def _losses(dtype: torch.dtype, steps: int) -> Tensor:
    """Losses of every step, means over ranks."""
    values: dict[str, Any] = {"schedule__total_steps": steps, "image__drop_path_rate": 0.2}
    torch.set_default_dtype(dtype)

    def prepare(student, teacher):
        shard(student, teacher, worker_mesh("cpu", 1), dtype)

    state, config = new_state(toy_config(**values), prepare=prepare), toy_config(**values)
    size, found = IMAGES // world_size(), []
    for step in range(steps):
        batch = rows(toy_batch(IMAGES, seed=step % 20, invalid=(3,)), rank() * size, (rank() + 1) * size)
        found.append(mean_over_ranks(train_step(state, [batch.to("cpu", dtype)], config))["loss/total"])
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.heavy
def test_sharded_recomputed_and_compiled_training_equals_plain_training():
    expected = _trained()
    for outcome in _over_ranks(2, 2, 1, True):
        torch.testing.assert_close(outcome, expected, atol=1e-8, rtol=1e-8)


def _gradients(replicas: int, accumulate_unsharded: bool, keep_graph: bool = False) -> tuple[dict[str, Tensor], int]:
    """Whole gradients of four micro-batches, and the number of reduce-scatter collectives."""
    state, config = _new(replicas), toy_config(**RUN)
    batch, size = toy_batch(IMAGES * 2), IMAGES * 2 // world_size() // 4
    first = rank() * size * 4
    micro = [rows(batch, first + i * size, first + (i + 1) * size) for i in range(4)]
    with OperatorCalls() as calls:
        total_steps = config.schedule.total_steps
        accumulate_gradients(state, micro, config.objective, total_steps, accumulate_unsharded, keep_graph=keep_graph)
    reduced = sum(count for name, count in calls.counts.items() if "reduce_scatter" in str(name))
    named = state.student.named_parameters()
    return {n: p.grad.full_tensor() for n, p in named if isinstance(p.grad, DTensor)}, reduced


@pytest.mark.heavy
@pytest.mark.parametrize(("ranks", "replicas"), [pytest.param(2, 1, marks=pytest.mark.variant), (4, 2)])
def test_gradients_averaged_once_are_those_averaged_after_every_micro_batch(ranks, replicas):
    each = run_on_ranks(ranks, _gradients, replicas, False)
    once = run_on_ranks(ranks, _gradients, replicas, True)
    names = {name for name, _ in new_state(toy_config()).student.named_parameters()}
    for (expected, calls), (gradients, fewer) in zip(each, once, strict=True):
        assert set(gradients) == names
        torch.testing.assert_close(gradients, expected, atol=1e-10, rtol=1e-10)
        # Two blocks, two of texts, two heads, the temperature, the root; and two in the contrastive loss.
        assert (calls, fewer) == (4 * 8 + 2, 8 + 2)


def _kept_or_not(accumulate_unsharded: bool) -> list[tuple[dict[str, Tensor], int]]:
    return [_gradients(1, accumulate_unsharded, keep_graph) for keep_graph in (False, True)]


@pytest.mark.heavy
@pytest.mark.parametrize(("accumulate_unsharded", "more"), [(False, 0), (True, 2)])
def test_gradients_over_a_kept_graph_are_those_of_two_forward_passes(accumulate_unsharded, more):
    for (expected, calls), (gradients, of_kept) in run_on_ranks(2, _kept_or_not, accumulate_unsharded):
        torch.testing.assert_close(gradients, expected, atol=1e-10, rtol=1e-10)
        # Autograd adds up both parts of a block's gradient before FSDP reduces it. Unsharded gradients of earlier
        # micro-batches are there already when the first part of the last one is done.
        assert of_kept == calls + more


def _own(passes: int) -> list[Batch]:
    """Micro-batches of this one of two ranks."""
    size = IMAGES // 2 // passes
    firsts = range(rank() * IMAGES // 2, (rank() + 1) * IMAGES // 2, size)
    return [rows(toy_batch(IMAGES), first, first + size) for first in firsts]


def _late_gathers(keep_graph: bool) -> set[str]:
    """Units of the student whose backward has to start the gather of its weights itself, in four passes."""
    state, late = _new(1), set[str]()

    def look(group, *of, own=FSDPParamGroup.pre_backward):
        begins = group._training_state != TrainingState.PRE_BACKWARD
        if begins and group.is_sharded and group._all_gather_result is None:
            late.add(group._module_fqn)
        return own(group, *of)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FSDPParamGroup, "pre_backward", look)
        accumulate_gradients(state, _own(4), toy_config(**RUN).objective, 100, keep_graph=keep_graph)
    return late


@pytest.mark.heavy
@pytest.mark.parametrize(("keep_graph", "late"), [(False, set()), (True, {"temperature"})])
def test_each_backward_finds_its_weights_gathered_by_the_one_before_it(keep_graph, late):
    """The temperature is one number. Without `set_is_last_backward` all blocks are late too with a kept graph."""
    assert run_on_ranks(2, _late_gathers, keep_graph) == [late] * 2


def _gathers(reshard_after_forward: bool, passes: int) -> tuple[dict[str, Tensor], int]:
    """Whole gradients of some micro-batches, and the number of gathers of weights, of student and teacher."""
    torch.set_default_dtype(torch.float64)
    try:
        state = new_state(
            config := toy_config(**RUN),
            prepare=lambda student, teacher: shard(
                student, teacher, worker_mesh("cpu"), torch.float64, reshard_after_forward
            ),
        )
    finally:
        torch.set_default_dtype(torch.float32)
    with OperatorCalls() as calls:
        accumulate_gradients(state, _own(passes), config.objective, config.schedule.total_steps)
    gathered = sum(count for name, count in calls.counts.items() if "c10d._allgather_base_" in str(name))
    named = state.student.named_parameters()
    assert all(isinstance(weight, DTensor) for weight in state.student.parameters())  # shards again
    return {n: p.grad.full_tensor() for n, p in named if isinstance(p.grad, DTensor)}, gathered


def _gathers_of_both(passes: int) -> list[tuple[dict[str, Tensor], int]]:
    return [_gathers(True, passes), _gathers(False, passes)]


@pytest.mark.heavy
@pytest.mark.parametrize(("passes", "fewer"), [(1, 4), (4, 56)])
def test_weights_that_stay_gathered_are_gathered_once_and_give_the_same_gradients(passes, fewer):
    """Blocks (two of images, two of texts), two heads, temperature and root are 8 units of the student.

    Freed, the blocks are gathered in the backward too. In four passes they are gathered 4 times in each of first pass,
    forward and backward (48), the heads 4 times (8), temperature and root at first and after three backwards (8): 64
    gathers instead of 8.
    """
    for (expected, often), (gradients, once) in run_on_ranks(2, _gathers_of_both, passes):
        torch.testing.assert_close(gradients, expected, atol=1e-12, rtol=1e-12)
        assert often - once == fewer


def _held(replicas: int) -> dict[str, tuple[int, int, int]]:
    """What each parameter has along the axis that is cut: the part of this rank and the whole; and the numbers held."""
    state = _new(replicas)
    named = [*state.student.named_parameters(prefix="student"), *state.teacher.named_parameters(prefix="teacher")]
    assert all(isinstance(parameter, DTensor) for _, parameter in named)
    return {name: _part(p) for name, p in named if isinstance(p, DTensor)}


def _part(parameter: DTensor) -> tuple[int, int, int]:
    own, (*_, cut) = parameter.to_local(), parameter.placements
    assert isinstance(cut, Shard)
    return own.shape[cut.dim], parameter.shape[cut.dim], own.numel()


@pytest.mark.heavy
@pytest.mark.parametrize(("ranks", "replicas"), [(2, 1), (4, 2)])
def test_each_rank_of_a_pair_holds_half_of_every_parameter(ranks, replicas):
    held = run_on_ranks(ranks, _held, replicas)
    parts = {name.rpartition(".")[0].split(".")[0] + "." + name.split(".")[1] for name in held[0]}
    assert parts == {"student." + p for p in ("image", "text", "heads", "temperature")} | {
        "teacher." + p for p in ("image", "heads")
    }
    for name, (_, whole, _) in held[0].items():
        half = -(-whole // 2)  # rounded up on the first of the two
        assert [rank_held[name][0] for rank_held in held] == [half, whole - half] * replicas, name
    sizes = [sum(numel for _, _, numel in rank_held.values()) for rank_held in held]
    assert abs(sizes[0] - sizes[1]) < 0.1 * sum(sizes[:2])


def test_tokens_and_positions_have_one_row_and_are_cut_along_their_width():
    """Cut along its row, each would lie on one rank, and 64 ranks would gather 64 of it."""
    with fake_group(64):
        state = new_state(
            toy_config(image__width=64, text__width=64),
            device="meta",
            prepare=lambda student, teacher: shard(student, teacher, worker_mesh("cpu")),
        )
    encoders: list[Any] = [state.student.image, state.teacher.image]
    for encoder in encoders:
        for name in ("cls_token", "register_tokens", "mask_token", "pos_embed"):
            parameter = encoder.get_parameter(name)
            assert parameter.to_local().numel() == parameter.numel() / 64 > 0


def _mesh_of_three() -> None:
    worker_mesh("cpu", 2)


@pytest.mark.heavy
def test_replicas_must_divide_the_workers():
    with pytest.raises(RuntimeError, match=r"resources.replicas \(2\) must divide the number of workers \(3\)"):
        run_on_ranks(3, _mesh_of_three)


def _notes_of_forwards(has_reset: bool) -> list[int]:
    """Notes that FSDP has on forwards of the teacher after each of three steps."""
    state, config, found = _new(replicas=1), toy_config(**RUN), []
    with pytest.MonkeyPatch.context() as patch:
        if not has_reset:
            patch.delattr(FSDPModule, "reset_iter_state")
        for step in range(3):
            train_step(state, [toy_batch(2, seed=step)], config)
            root: Any = state.teacher._get_fsdp_state()  # pyright: ignore[reportAttributeAccessIssue, reportCallIssue]
            groups = [group for part in root._state_ctx.all_states for group in part._fsdp_param_groups]
            notes = [root._comm_ctx.post_forward_order, *(group._post_forward_indices for group in groups)]
            found.append(sum(map(len, notes)))
    return found


@pytest.mark.heavy
@pytest.mark.parametrize("has_reset", [True, False])
def test_notes_on_the_teachers_forwards_do_not_pile_up(has_reset):
    """A teacher has no backward, which is where FSDP drops them; older versions of torch have no call for it."""
    assert run_on_ranks(2, _notes_of_forwards, has_reset) == [[0, 0, 0]] * 2
