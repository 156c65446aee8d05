"""How much of the targets is predicted, by hand arithmetic and against a naive computation."""

from math import log

import pytest
import torch
from torch import Tensor, tensor
from toy import toy_batch, toy_config

from tips_ray.train.health import Health
from tips_ray.train.information import InformationWindow, TargetSums, information
from tips_ray.train.schedules import prototype_temperatures
from tips_ray.train.state import new_state
from tips_ray.train.step import accumulate_gradients


def _sums(target_RK: Tensor, student_RK: Tensor) -> TargetSums:
    """Rows that all weigh 1."""
    entropy = torch.special.entr(target_RK).sum().item()
    cross_entropy = -torch.special.xlogy(target_RK, student_RK).sum().item()
    return TargetSums(len(target_RK), len(target_RK), target_RK.sum(dim=0), entropy, cross_entropy)


def test_a_perfect_student_of_n_different_one_hot_targets_has_ln_n():
    found = information([_sums(torch.eye(4)[:3], torch.eye(4)[:3])])
    assert found == pytest.approx({"information": log(3), "mutual_information": log(3)})


def test_a_student_that_knows_only_the_mean_has_none_and_one_that_knows_nothing_is_below():
    """Targets (1, 0) three times and (0, 1) once: their mean has 2 ln 2 - 3/4 ln 3 nats, the uniform student ln 2."""
    target_RK, entropy = tensor([[1.0, 0.0]] * 3 + [[0.0, 1.0]]), 2 * log(2) - 0.75 * log(3)
    found = information([_sums(target_RK, tensor([[0.75, 0.25]] * 4))])
    assert found == pytest.approx({"information": 0.0, "mutual_information": entropy}, abs=1e-6)
    found = information([_sums(target_RK, torch.full((4, 2), 0.5))])
    assert found["information"] == pytest.approx(entropy - log(2))


@pytest.mark.parametrize("target", [[0.25] * 4, [1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]])
def test_targets_that_are_alike_for_all_rows_tell_nothing_however_well_they_are_predicted(target):
    target_RK = tensor([target] * 5)
    found = information([_sums(target_RK, target_RK)])
    assert found == pytest.approx({"information": 0.0, "mutual_information": 0.0}, abs=1e-6)


def test_steps_count_by_their_rows_and_a_step_without_rows_says_nothing():
    rows_RK = torch.eye(4)[[0, 0, 0, 1]]
    apart = [_sums(rows_RK[:1], rows_RK[:1]), _sums(rows_RK[1:], rows_RK[1:])]
    assert information(apart) == pytest.approx(information([_sums(rows_RK, rows_RK)]))
    assert information([_sums(rows_RK[:0], rows_RK[:0])]) == {}


def test_the_window_says_nothing_before_it_is_full_and_forgets_what_it_does_not_need():
    window, one_hot = InformationWindow(images=4), torch.eye(4)
    assert window.add(_sums(one_hot[:2], one_hot[:2])) == {}
    assert window.add(_sums(one_hot[2:3], one_hot[2:3])) == {}
    assert window.add(_sums(one_hot[3:], one_hot[3:]))["information"] == pytest.approx(log(4))
    assert window.add(_sums(one_hot[:2], one_hot[:2]))["information"] == pytest.approx(log(4))
    assert [step.images for step in window.steps] == [1, 1, 2]
    assert window.add(_sums(one_hot, one_hot))["information"] == pytest.approx(log(4)) and len(window.steps) == 1


@pytest.mark.parametrize("visible_weight", [0.0, 0.5])
def test_a_step_has_the_information_of_the_whole_score_matrices(visible_weight):
    """Images with few masked patches weigh as much as those with many; an invalid one, and one without, weigh nothing.

    The window needs two steps of 7 valid images."""
    config = toy_config(objective__visible_weight=visible_weight)
    state, health = new_state(config), Health(config.objective, window_images=14)
    expected, found = {"distillation": [], "masked_image": []}, {}
    for seed in (1, 2):
        batch = toy_batch(8, seed=seed, invalid=(3,)).to("cpu", torch.float32)
        health.expect(is_logged=True)
        terms, _ = accumulate_gradients(state, [batch], config.objective, 10, health=health)
        found = health.metrics(state.centers, {f"loss/{name}": term.item() for name, term in terms.items()})
        for head, sums in _naive(state, batch, config).items():
            expected[head].append(sums)
    for head, steps in expected.items():
        for name, value in information(steps).items():
            assert found[f"health/{head}/{name}"] == pytest.approx(value, abs=1e-5) and abs(value) > 1e-4


@torch.no_grad()
def _naive(state, batch, config) -> dict[str, TargetSums]:
    """From whole matrices of scores; the centres are zero."""
    student, temperatures = state.student(batch), prototype_temperatures(0, 10, config.objective)
    teacher = state.teacher(batch, student.clean)
    mask_BL, visible = batch.patch_mask_BL, config.objective.visible_weight
    crops = student.crop_scores.unit_RD.unflatten(0, (-1, len(batch)))
    weights = [1 / mask_BL[b].sum() if masked else visible / (~mask_BL[b]).sum()
               for b in range(len(batch)) for masked in mask_BL[b] if masked or visible]  # fmt: skip
    valid = batch.valid_B[:, None].expand_as(mask_BL)[mask_BL | bool(visible)]
    rows = {
        "distillation": (crops, student.crop_scores.prototypes_KD, teacher.cls, batch.valid_B.float()),
        "masked_image": (
            student.patch_scores[0][None],
            student.patch_scores[1],
            teacher.patch,
            tensor(weights) * valid,
        ),
    }
    return {head: _naive_sums(7, *parts, temperatures[head]) for head, parts in rows.items()}


def _naive_sums(images, unit_VRD, prototypes_KD, teacher, weight_R, temperatures) -> TargetSums:
    target_RK = (teacher.unit_RD @ teacher.prototypes_KD.T / temperatures.teacher).softmax(dim=-1)
    log_student_VRK = (unit_VRD @ prototypes_KD.T / temperatures.student).log_softmax(dim=-1)
    cross_R = -(target_RK * log_student_VRK).sum(dim=-1).mean(dim=0)
    entropy_R = torch.special.entr(target_RK).sum(dim=-1)
    entropy, cross_entropy = (float((values_R * weight_R).sum()) for values_R in (entropy_R, cross_R))
    return TargetSums(images, float(weight_R.sum()), weight_R @ target_RK, entropy, cross_entropy)
