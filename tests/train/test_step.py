"""One optimizer step: K micro-batches and W ranks give the gradients of one batch."""

import copy
from dataclasses import replace

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor
from toy import rows, toy_batch, toy_config

from tips_ray.batch import Batch, masked_index
from tips_ray.config import TrainConfig
from tips_ray.distributed import rank, sum_over_ranks, world_size
from tips_ray.models.networks import Teacher
from tips_ray.objective import center_sums
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import accumulate_gradients, train_step

IMAGES, INVALID = 8, (1, 6)
SWITCHES = {
    "tips": {},
    "drop path": {"image__drop_path_rate": 0.4},
    "iBOT++": {"objective__visible_weight": 1.0},
    "head-only EMA": {"objective__teacher": "ema_heads"},
    "head-only EMA, drop path": {"objective__teacher": "ema_heads", "image__drop_path_rate": 0.4},
    "masked contrastive view": {"objective__contrastive_view": "masked"},
    "frozen teacher": {"objective__teacher": "frozen"},
    "contrastive alone": {"objective__alpha": 0, "objective__beta": 0},
    "web caption alone": {"objective__web_weight": 1, "objective__synthetic_weight": 0},
    "synthetic caption alone": {"objective__web_weight": 0, "objective__synthetic_weight": 1, "objective__alpha": 0},
}


def _state(config: TrainConfig) -> TrainState:
    """A float64 state whose teacher and centres already differ from the student's."""
    teacher = _larger_teacher() if config.objective.teacher == "frozen" else None
    state = new_state(config, teacher)
    generator = torch.Generator().manual_seed(1)
    for network in (state.student, state.teacher, state.centers):
        network.double()
        for tensor in [*network.parameters(), *network.buffers()]:
            tensor.data += 0.02 * torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
    return state


def _larger_teacher() -> Teacher:
    config = toy_config(seed=7, image__width=48, text__width=48, image__depth=3)
    trained = new_state(config)
    return Teacher(trained.student.image, trained.student.heads, toy_config(objective__teacher="frozen").objective)


def _outcome(config: TrainConfig, micro_batches: int, keep_graph: bool = False) -> dict[str, Tensor]:
    """Losses, gradients as averaged over ranks, and centre sums of this rank's share of the global batch."""
    batch = toy_batch(IMAGES, invalid=INVALID)
    size = IMAGES // world_size() // micro_batches
    first = rank() * size * micro_batches
    micro = [rows(batch, start, start + size) for start in range(first, first + size * micro_batches, size)]
    state = _state(config)
    total_steps = config.schedule.total_steps
    terms, sums = accumulate_gradients(state, micro, config.objective, total_steps, keep_graph=keep_graph)
    gradients = {n: p.grad for n, p in state.student.named_parameters() if p.grad is not None}
    shared = {name: sum_over_ranks(value) / world_size() for name, value in {**terms, **gradients}.items()}
    return {**shared, **{f"center/{name}": value for name, value in sums.items()}}


def _four_ways(config: TrainConfig, micro_batches: tuple[int, ...]) -> list[dict[str, Tensor]]:
    return [_outcome(config, count) for count in micro_batches]


@pytest.mark.parametrize(
    "switches",
    [
        pytest.param(values, id=name, marks=pytest.mark.heavy if name != "tips" else ())
        for name, values in SWITCHES.items()
    ],
)
def test_micro_batches_equal_one_batch_in_loss_and_every_gradient(switches):
    config = toy_config(**switches)
    whole = _outcome(config, 1)
    for count in (2, 4, 8):
        torch.testing.assert_close(_outcome(config, count), whole, atol=1e-10, rtol=1e-10)
    torch.testing.assert_close(_outcome(config, 4, keep_graph=True), whole, atol=1e-10, rtol=1e-10)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "switches",
    [
        pytest.param(SWITCHES["tips"] | SWITCHES["drop path"], id="tips"),
        pytest.param(SWITCHES["iBOT++"], id="iBOT++", marks=pytest.mark.variant),
    ],
)
def test_ranks_and_micro_batches_together_equal_one_batch(switches):
    config = toy_config(**switches)
    whole = _outcome(config, 1)
    for ranks in (2, 4):
        for outcomes in run_on_ranks(ranks, _four_ways, config, (1, 2)):
            for outcome in outcomes:
                torch.testing.assert_close(outcome, whole, atol=1e-10, rtol=1e-10)


def test_every_trained_parameter_but_the_unused_gets_a_gradient():
    state = _state(config := toy_config())
    accumulate_gradients(state, [toy_batch(IMAGES)], config.objective, 10)
    assert {name for name, parameter in state.student.named_parameters() if parameter.grad is None} == set()
    assert all(parameter.grad is None for parameter in state.teacher.parameters())


def test_an_invalid_row_changes_nothing_whatever_it_holds():
    config, batch = toy_config(), toy_batch(4, invalid=(2,))
    assert_same_step(config, batch, _with_other_row(batch, toy_batch(4, seed=5), 2))


def _with_other_row(batch: Batch, other: Batch, row: int) -> Batch:
    """`batch` with everything but validity of one row taken from `other`."""
    values = {name: value.clone() for name, value in vars(batch).items()}
    for name in ("global_crops_BCHW", "patch_mask_BL", "web_ids_BT", "synthetic_ids_BAT", "key_B"):
        values[name][row] = getattr(other, name)[row]
    values["local_crops_VBCHW"][:, row] = other.local_crops_VBCHW[:, row]
    return Batch(**{**values, "masked_index_M": masked_index(values["patch_mask_BL"])})


def assert_same_step(config: TrainConfig, *batches: Batch) -> None:
    """All batches give equal losses, centre sums and gradients."""
    outcomes = []
    for batch in batches:
        state = _state(config)
        terms, sums = accumulate_gradients(state, [batch], config.objective, 10)
        outcomes.append([terms, sums, [parameter.grad for parameter in state.student.parameters()]])
    for outcome in outcomes[1:]:
        torch.testing.assert_close(outcome, outcomes[0], atol=1e-12, rtol=1e-12)


def test_padding_of_captions_never_matters():
    batch = toy_batch(4)
    short = {"web_ids_BT": batch.web_ids_BT[:, :8], "synthetic_ids_BAT": batch.synthetic_ids_BAT[:, :, :8]}
    padded = {name: torch.nn.functional.pad(ids, (0, 4)) for name, ids in short.items()}
    assert_same_step(toy_config(), replace(batch, **short), replace(batch, **padded))


def test_short_texts_never_matter():
    """Captions of 1 to 12 tokens in 12 places; those of at most 8 are short."""
    batch = toy_batch(4)
    is_long_2B = torch.cat([batch.web_ids_BT[:, 8:].any(dim=1), batch.synthetic_ids_BAT[..., 8:].any(dim=2).any(dim=1)])
    short_S = (~is_long_2B).nonzero().flatten()
    assert 0 < len(short_S) < 8
    assert_same_step(toy_config(), batch, replace(batch, short_texts_S=short_S))


def test_a_step_moves_teacher_and_centres_once_by_the_written_formulas():
    config = toy_config()
    state, batch = _state(config), toy_batch(IMAGES, invalid=INVALID)
    before_teacher = copy.deepcopy(state.teacher.state_dict())
    before_centers = copy.deepcopy(state.centers.state_dict())
    scores = state.teacher(batch, None)
    sums = center_sums(scores, batch, config.objective)
    train_step(state, [rows(batch, 0, 4), rows(batch, 4, 8)], config)
    momentum, student = config.objective.ema_momentum, state.student.state_dict()
    for name, value in state.teacher.state_dict().items():
        torch.testing.assert_close(value, momentum * before_teacher[name] + (1 - momentum) * student[name])
    for name, sum_K1 in sums.items():
        expected = 0.9 * before_centers[f"{name}_K"] + 0.1 * sum_K1[:-1] / sum_K1[-1]
        torch.testing.assert_close(state.centers.state_dict()[f"{name}_K"], expected)
    assert sums["distillation"][-1] == IMAGES - len(INVALID)
    assert sums["masked_image"][-1] == batch.patch_mask_BL[batch.valid_B].sum()
    assert state.step == 1


def test_a_bias_corrected_centre_counts_the_steps_that_were_done():
    """The first move takes the batch's mean; after one of two steps was skipped, the second one is the first move."""
    config, batch = toy_config(objective__center_start="bias_corrected"), toy_batch(IMAGES, invalid=INVALID)
    for step, skipped in ((0, 0), (2, 2), (3, 2)):
        state = _state(config)
        state.step, state.skipped_steps = step, skipped
        before_K, sum_K1 = (
            state.centers.distillation_K.clone(),
            center_sums(state.teacher(batch, None), batch, config.objective)["distillation"],
        )
        train_step(state, [batch], config)
        share = 0.9 / 1.9 if step - skipped else 0
        expected_K = share * before_K + (1 - share) * sum_K1[:-1] / sum_K1[-1]
        torch.testing.assert_close(state.centers.distillation_K, expected_K)


def test_a_frozen_teacher_never_moves_and_a_head_only_one_moves_its_heads():
    for kind, moves in (("frozen", False), ("ema_heads", True)):
        state = _state(config := toy_config(objective__teacher=kind))
        before = copy.deepcopy(state.teacher.state_dict())
        train_step(state, [toy_batch(4)], config)
        changed = [not torch.equal(before[name], value) for name, value in state.teacher.state_dict().items()]
        assert any(changed) == moves
        assert kind == "frozen" or all(name.startswith("heads.") for name in before)


def test_a_frozen_teacher_takes_the_rules_of_this_run_and_not_of_its_own():
    trained = new_state(toy_config(objective__visible_weight=1.0))
    teacher = Teacher(trained.student.image, trained.student.heads, trained.teacher.config)
    state = new_state(config := toy_config(objective__teacher="frozen"), teacher)
    before = copy.deepcopy(state.teacher.state_dict())
    train_step(state, [toy_batch(4).to("cpu", torch.float32)], config)
    torch.testing.assert_close(state.teacher.state_dict(), before, atol=0, rtol=0)


def test_prototypes_rest_while_frozen_and_move_afterwards():
    state = _state(config := toy_config(objective__prototype_freeze=0.1))  # one of ten steps
    history = [state.student.heads.masked_image.prototypes.detach().clone()]
    for _ in range(2):
        train_step(state, [toy_batch(4)], config)
        history.append(state.student.heads.masked_image.prototypes.detach().clone())
    assert torch.equal(history[0], history[1]) and not torch.equal(history[1], history[2])


@pytest.mark.parametrize("key", ["student_temperature", "teacher_temperature_start"])
def test_temperatures_of_the_masked_loss_move_that_loss_alone(key):
    """The loss with a temperature of its own is that of a run whose every temperature is the same."""
    plain, own, both = (
        _outcome(toy_config(**values), 1)
        for values in ({}, {f"objective__masked_{key}": 0.2}, {f"objective__{key}": 0.2})
    )
    assert own["masked_image"] == both["masked_image"] != plain["masked_image"]
    assert own["distillation"] == plain["distillation"] != both["distillation"]


def test_a_step_sees_the_values_of_its_change_and_no_step_before_does():
    direct = {"peak_lr": 0.5, "beta": 1.0, "ema_momentum": 0.5, "max_grad_norm": 0.1, "weight_decay": 0.5}
    whole = toy_config(
        schedule__peak_lr=0.5,
        objective__beta=1.0,
        objective__ema_momentum=0.5,
        optimizer__max_grad_norm=0.1,
        optimizer__weight_decay=0.5,
    )
    plain, changed = toy_config(), toy_config(schedule__changes=[{"from_step": 1, **direct}])
    states = [_state(toy_config()), _state(toy_config())]
    for configs in ((plain, changed), (whole, changed)):
        for state, config in zip(states, configs, strict=True):
            train_step(state, [toy_batch(4)], config)
        for name in ("student", "teacher"):
            first, second = (getattr(state, name).state_dict() for state in states)
            torch.testing.assert_close(second, first, atol=0, rtol=0)


@pytest.mark.heavy
def test_sixty_steps_on_one_batch_learn_which_caption_belongs_to_which_image():
    config = toy_config(schedule__total_steps=60, schedule__peak_lr=3e-3, objective__alpha=0.1, objective__beta=0.1)
    state, batch = new_state(config), toy_batch(8).to("cpu", torch.float32)
    losses = [train_step(state, [batch], config)["loss/contrastive_synthetic"].item() for _ in range(60)]
    assert losses[-1] < 0.3 * losses[0]


def test_a_teacher_is_given_exactly_when_it_is_frozen():
    with pytest.raises(ValueError, match=r"objective.teacher \(frozen\).*none was given"):
        new_state(toy_config(objective__teacher="frozen"))
    with pytest.raises(ValueError, match=r"objective.teacher \(ema\).*one was given"):
        new_state(toy_config(), _larger_teacher())
