"""Distillation from a frozen larger teacher: it is the given one, does not change, and is sharded."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor
from toy import rows, toy_batch, toy_config
from toy_start import begun, numbers, trained_run

from tips_ray.distributed import rank, world_size
from tips_ray.runs.checkpoint import checkpoint_at
from tips_ray.train.checkpointing import load_checkpoint, save_checkpoint
from tips_ray.train.initial_weights import load_initial_weights, unloaded_teacher
from tips_ray.train.state import new_state
from tips_ray.train.step import train_step

IMAGES, STEPS = 8, 3
LARGER = {"image__width": 48, "text__width": 48, "image__depth": 4, "head__hidden": 40, "seed": 7}


def _distilled(teacher: Path | str, **values: Any):
    return toy_config(objective__teacher="frozen", objective__frozen_teacher=str(teacher), **values)


def _teacher(state) -> dict[str, Tensor]:
    """The teacher's network and its centres."""
    return {key: value for key, value in numbers(state).items() if not key.startswith("student.")}


@pytest.mark.heavy
def test_the_teacher_and_its_centres_are_those_that_its_run_averaged(tmp_path):
    trained = trained_run(str(tmp_path), 2, **LARGER)
    state = begun(_distilled(tmp_path))
    torch.testing.assert_close(_teacher(state), _teacher(trained), rtol=0, atol=0)
    assert not state.teacher.training and not any(weight.requires_grad for weight in state.teacher.parameters())


@pytest.mark.heavy
def test_the_student_is_as_random_as_without_a_teacher(tmp_path):
    trained_run(str(tmp_path), 1, **LARGER)
    expected = new_state(toy_config()).student.state_dict()
    torch.testing.assert_close(begun(_distilled(tmp_path)).student.state_dict(), expected, rtol=0, atol=0)


@pytest.mark.heavy
def test_a_teacher_trained_with_averaged_heads_alone_has_the_encoder_of_its_student(tmp_path):
    trained = trained_run(str(tmp_path), 2, objective__teacher="ema_heads", **LARGER)
    teacher = begun(_distilled(tmp_path)).teacher
    assert teacher.image is not None
    torch.testing.assert_close(teacher.image.state_dict(), trained.student.image.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(teacher.heads.state_dict(), trained.teacher.heads.state_dict(), rtol=0, atol=0)


@pytest.mark.heavy
def test_a_distilled_student_can_teach_in_its_turn(tmp_path):
    trained_run(str(tmp_path / "first"), 1, **LARGER)
    second = {"objective__teacher": "frozen", "objective__frozen_teacher": str(tmp_path / "first")}
    trained = trained_run(str(tmp_path / "second"), 2, image__depth=3, **second)
    teacher = begun(_distilled(tmp_path / "second")).teacher
    student = trained.student.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in teacher.state_dict().items())


@pytest.mark.heavy
def test_a_student_may_start_from_a_run_and_keeps_its_teachers_centres(tmp_path):
    trained = trained_run(str(tmp_path / "teacher"), 2, **LARGER)
    first = trained_run(str(tmp_path / "student"), 2)
    state = begun(_distilled(tmp_path / "teacher", start__uri=str(tmp_path / "student")))
    torch.testing.assert_close(state.student.state_dict(), first.student.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(_teacher(state), _teacher(trained), rtol=0, atol=0)


@pytest.mark.heavy
def test_a_checkpoint_holds_the_teacher_whose_run_may_have_lost_its_own(tmp_path):
    trained_run(str(tmp_path / "teacher"), 1, **LARGER)
    state = begun(config := _distilled(tmp_path / "teacher"))
    train_step(state, [toy_batch(4).to("cpu", torch.float32)], config)
    saved = save_checkpoint(state, str(tmp_path / "checkpoints"), {})
    shutil.rmtree(tmp_path / "teacher" / "checkpoints")
    load_checkpoint(restored := new_state(config, unloaded_teacher(config)), saved)
    torch.testing.assert_close(numbers(restored), numbers(state), rtol=0, atol=0)


def _after_some_steps(teacher: str, checkpoints: str) -> dict[str, Any]:
    """The teacher before and after, all numbers, and how many of the teacher's this rank holds; in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        config = _distilled(teacher, image__drop_path_rate=0.2)
        before = numbers(state := begun(config))
        size = IMAGES // world_size()
        for step in range(STEPS):
            batch, first = toy_batch(IMAGES, seed=step, invalid=(3,)), rank() * size
            train_step(state, [rows(batch, first, first + size)], config)
        restored = begun(config)
        save_checkpoint(state, f"{checkpoints}-{world_size()}", {})
        load_checkpoint(restored, checkpoint_at(f"{checkpoints}-{world_size()}", STEPS))
    finally:
        torch.set_default_dtype(torch.float32)
    held = [getattr(weight, "_local_tensor", weight).numel() for weight in state.teacher.parameters()]
    sharded = all(isinstance(weight, DTensor) for weight in state.teacher.parameters())
    return {
        "before": before,
        "after": numbers(state),
        "restored": numbers(restored),
        "held": sum(held),
        "sharded": sharded,
    }


@pytest.mark.slow
def test_two_ranks_share_a_teacher_that_rests_and_train_as_one(tmp_path):
    trained_run(str(tmp_path / "teacher"), 1, **LARGER)
    arguments = (str(tmp_path / "teacher"), str(tmp_path / "checkpoints"))
    alone, both = _after_some_steps(*arguments), run_on_ranks(2, _after_some_steps, *arguments)
    assert alone["held"] == sum(found["held"] for found in both) and all(found["sharded"] for found in both)
    assert abs(both[0]["held"] - both[1]["held"]) < 0.2 * alone["held"]
    for found in (alone, *both):
        for name in (name for name in found["before"] if name.startswith("teacher.")):
            assert torch.equal(found["before"][name], found["after"][name])
        torch.testing.assert_close(found["restored"], found["after"], rtol=0, atol=0)
    for found in both:
        torch.testing.assert_close(found["after"], alone["after"], atol=1e-8, rtol=1e-8)


def test_without_a_teacher_to_load_nothing_is_built_and_nothing_told():
    config = toy_config()
    assert unloaded_teacher(config) is None and load_initial_weights(new_state(config), config) == {}
