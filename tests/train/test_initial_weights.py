"""Initial weights: of another run, a release, a transformers folder; warm-up of the heads alone."""

from pathlib import Path

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor
from torch.nn import functional as F
from toy import toy_batch, toy_config
from toy_model import toy_model
from toy_run import tiny_run, toy_job
from toy_start import begun, numbers, released, sizes_of, trained_run

from tips_ray import storage
from tips_ray.runs.checkpoint import newest_checkpoint
from tips_ray.runs.folder import RunFolder
from tips_ray.storage import StorageError
from tips_ray.train import worker_loop
from tips_ray.train.checkpointing import load_checkpoint, save_checkpoint
from tips_ray.train.initial_weights import load_initial_weights
from tips_ray.train.run_recorder import note_failure
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import accumulate_gradients, train_step
from tips_ray.train.worker_loop import train_worker

SMALL = {"image__image_size_px": 28}
POSITIONS = ("student.image.pos_embed", "teacher.image.pos_embed")


def _of(state: TrainState, network: str) -> dict[str, Tensor]:
    return {key: value for key, value in numbers(state).items() if key.startswith(network)}


def _features(state: TrainState, side: int) -> list[Tensor]:
    images_BCHW = torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return [*state.student.image(images_BCHW), *state.teacher.image(images_BCHW)]  # pyright: ignore[reportOptionalCall]


def test_a_second_stage_on_the_same_grid_is_the_first_with_a_fresh_optimizer_at_step_0(tmp_path):
    first = trained_run(str(tmp_path), 3, **SMALL)
    second = begun(toy_config(start__uri=str(tmp_path), schedule__peak_lr=1e-4, seed=9, **SMALL))
    torch.testing.assert_close(numbers(second), numbers(first), rtol=0, atol=0)
    torch.testing.assert_close(_features(second, 28), _features(first, 28))
    assert second.step == 0 and not second.optimizer.state


def test_a_second_stage_on_a_finer_grid_resamples_positions_and_nothing_else(tmp_path):
    before = numbers(first := trained_run(str(tmp_path), 3, **SMALL))
    after = numbers(second := begun(toy_config(start__uri=str(tmp_path), image__image_size_px=56)))
    for name in POSITIONS:
        stored, found = before.pop(name), after.pop(name)
        square = stored[:, 1:].unflatten(1, (2, 2)).permute(0, 3, 1, 2)
        resized = F.interpolate(square, (4, 4), mode="bilinear", align_corners=False, antialias=True)
        assert torch.equal(found[:, :1], stored[:, :1])
        torch.testing.assert_close(found[:, 1:], resized.flatten(2).transpose(1, 2))
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    torch.testing.assert_close(_features(second, 56), _features(first, 56))


@pytest.mark.heavy
def test_one_checkpoint_of_a_run_can_be_named(tmp_path):
    trained_run(str(tmp_path), 1, 2)
    named = begun(toy_config(start__uri=f"{tmp_path}/checkpoints/step-00000001/"))
    newest = begun(toy_config(start__uri=str(tmp_path)))
    expected = trained_run(str(tmp_path / "again"), 1)
    torch.testing.assert_close(numbers(named), numbers(expected), rtol=0, atol=0)
    assert not torch.equal(named.centers.distillation_K, newest.centers.distillation_K)


@pytest.mark.heavy
def test_a_damaged_newest_checkpoint_is_passed_over(tmp_path):
    trained_run(str(tmp_path), 1, 2)
    path = tmp_path / "checkpoints" / "step-00000002" / "__0_0.distcp"
    path.write_bytes(path.read_bytes()[:-1])
    found = numbers(begun(toy_config(start__uri=str(tmp_path))))
    expected = begun(toy_config(start__uri=f"{tmp_path}/checkpoints/step-00000001"))
    torch.testing.assert_close(found, numbers(expected), rtol=0, atol=0)


def test_a_teacher_without_an_encoder_of_its_own_is_the_student_under_averaged_heads(tmp_path):
    first = trained_run(str(tmp_path), 3, objective__teacher="ema_heads")
    second = begun(toy_config(start__uri=str(tmp_path)))
    torch.testing.assert_close(second.teacher.heads.state_dict(), first.teacher.heads.state_dict(), rtol=0, atol=0)
    assert second.teacher.image is not None
    torch.testing.assert_close(second.teacher.image.state_dict(), first.student.image.state_dict(), rtol=0, atol=0)
    heads = (second.student.heads.masked_image, second.teacher.heads.masked_image)
    assert not torch.equal(*(head.prototypes for head in heads))


@pytest.mark.heavy
def test_head_only_averages_start_from_a_whole_teacher(tmp_path):
    first = trained_run(str(tmp_path), 3)
    second = begun(toy_config(start__uri=str(tmp_path), objective__teacher="ema_heads"))
    torch.testing.assert_close(_of(second, "student"), _of(first, "student"), rtol=0, atol=0)
    torch.testing.assert_close(second.teacher.heads.state_dict(), first.teacher.heads.state_dict(), rtol=0, atol=0)


@pytest.mark.heavy
def test_a_distilled_student_is_its_own_first_teacher(tmp_path):
    trained_run(str(tmp_path / "teacher"), 1)
    distilled = {"objective__teacher": "frozen", "objective__frozen_teacher": str(tmp_path / "teacher")}
    first = trained_run(str(tmp_path / "student"), 2, **distilled)
    second = begun(toy_config(start__uri=str(tmp_path / "student")))
    student = {key.removeprefix("student"): value for key, value in _of(first, "student").items()}
    for key, value in _of(second, "teacher").items():
        assert torch.equal(value, student[key.removeprefix("teacher")])


def test_a_release_gives_encoders_and_temperature_and_leaves_random_heads(tmp_path):
    model = released(tmp_path)
    config = toy_config(start__uri=str(tmp_path / "{vision,text}.npz"), **sizes_of(model))
    state, random = begun(config), new_state(config)
    torch.testing.assert_close(state.student.image.state_dict(), model.image.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(state.student.text.state_dict(), model.text.state_dict(), rtol=0, atol=0)
    assert state.student.log_temperature.exp().item() == pytest.approx(model.temperature, rel=1e-6)
    torch.testing.assert_close(_of(state, "student.heads"), _of(random, "student.heads"), rtol=0, atol=0)
    student = state.student.state_dict()
    assert all(torch.equal(value, student[name]) for name, value in state.teacher.state_dict().items())


@pytest.mark.parametrize(("taken", "left"), [("image", "text"), ("text", "image")])
def test_one_released_encoder_leaves_the_other_random(tmp_path, taken, left):
    model = released(tmp_path)
    file = {"image": "vision.npz", "text": "text.npz"}[taken]
    config = toy_config(start__uri=str(tmp_path / file), **sizes_of(model))
    state, random = begun(config), new_state(config)
    expected = getattr(model, taken).state_dict()
    torch.testing.assert_close(getattr(state.student, taken).state_dict(), expected, rtol=0, atol=0)
    torch.testing.assert_close(_of(state, f"student.{left}"), _of(random, f"student.{left}"), rtol=0, atol=0)


def test_a_release_for_another_grid_gives_the_features_that_its_own_grid_gives(tmp_path):
    model = released(tmp_path, image_size_px=84)
    config = toy_config(start__uri=str(tmp_path), **{**sizes_of(model), "image__image_size_px": 56})
    images_BCHW = torch.rand(2, 3, 56, 56)
    with torch.no_grad():
        torch.testing.assert_close(begun(config).student.image(images_BCHW), model.image(images_BCHW))


def test_a_transformers_folder_gives_encoders_and_temperature(tmp_path):
    model = toy_model()
    model.export_transformers(tmp_path / "folder")
    state = begun(toy_config(start__uri=str(tmp_path / "folder"), **sizes_of(model)))
    torch.testing.assert_close(state.student.image.state_dict(), model.image.state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(state.student.text.state_dict(), model.text.state_dict(), rtol=0, atol=0)
    assert state.student.log_temperature.exp().item() == pytest.approx(model.temperature, rel=1e-6)


@pytest.mark.heavy
def test_what_a_run_began_with_is_told_and_known_again_by_its_fingerprint(tmp_path):
    def told(uri: Path) -> dict:
        config = toy_config(start__uri=str(uri), **sizes_of(toy_model()))
        return load_initial_weights(new_state(config), config)["start"]

    released(tmp_path / "one")
    released(tmp_path / "copy")
    one, copied, part = told(tmp_path / "one"), told(tmp_path / "copy"), told(tmp_path / "one" / "text.npz")
    assert (one["uri"], one["kind"]) == (str(tmp_path / "one"), "official")
    assert one["fingerprint"] == copied["fingerprint"] != part["fingerprint"] and len(one["fingerprint"]) == 64


@pytest.mark.slow
def test_an_object_store_gives_what_a_folder_gives(tmp_path, s3):
    model, bucket = released(tmp_path / "npz"), s3.make_bucket("start")
    model.export_transformers(tmp_path / "folder")
    for path in [path for path in tmp_path.rglob("*") if path.is_file()]:
        storage.upload(path, f"{bucket}/{path.relative_to(tmp_path)}")
    for name in ("npz", "folder"):
        found, expected = (
            numbers(begun(toy_config(start__uri=f"{place}/{name}", **sizes_of(model)))) for place in (bucket, tmp_path)
        )
        torch.testing.assert_close(found, expected, rtol=0, atol=0)
    first = trained_run(f"{bucket}/run", 2)
    torch.testing.assert_close(numbers(begun(toy_config(start__uri=f"{bucket}/run"))), numbers(first), rtol=0, atol=0)


def _loaded(values: dict) -> dict[str, Tensor]:
    return numbers(begun(toy_config(**values)))


@pytest.mark.heavy
def test_two_ranks_load_what_one_loads(tmp_path):
    trained_run(str(tmp_path / "run"), 2, **SMALL)
    model = released(tmp_path / "npz")
    run = {"start__uri": str(tmp_path / "run"), "image__image_size_px": 56}
    for values in (run, {"start__uri": str(tmp_path / "npz"), **sizes_of(model)}):
        expected = _loaded(values)
        for found in run_on_ranks(2, _loaded, values):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)


def _refused(values: dict) -> str:
    state = new_state(toy_config(**values))
    try:
        load_initial_weights(state, toy_config(**values))
    except ValueError as error:
        return str(error)
    return "loaded"


@pytest.mark.heavy
def test_what_the_first_rank_finds_wrong_is_raised_by_all(tmp_path):
    told = run_on_ranks(2, _refused, {"start__uri": str(tmp_path / "none")})
    assert told[0] == told[1] and "start.uri" in told[0]


def _trained(state: TrainState, steps: int, config) -> TrainState:
    for _ in range(steps):
        train_step(state, [toy_batch(4, seed=state.step).to("cpu", torch.float32)], config)
    return state


def _warmed(tmp_path: Path, **values):
    return toy_config(start__uri=str(tmp_path), start__warmup_heads_steps=3, **sizes_of(toy_model()), **values)


def test_while_heads_warm_up_nothing_else_moves_and_then_all_does(tmp_path):
    released(tmp_path)
    config = _warmed(tmp_path, objective__prototype_freeze=0.0)
    start = numbers(state := begun(config))
    warm, after = numbers(_trained(state, 3, config)), numbers(_trained(state, 1, config))
    moved = {name for name in start if not torch.equal(start[name], warm[name])}
    assert moved == {name for name in start if ".heads." in name or name.startswith("centers.")}
    assert not any(torch.equal(warm[name], after[name]) for name in warm)


def test_the_norm_that_is_clipped_is_that_of_the_heads_alone(tmp_path):
    released(tmp_path)
    config = _warmed(tmp_path, objective__prototype_freeze=0.0, optimizer__max_grad_norm=1e9)
    batch = toy_batch(4).to("cpu", torch.float32)
    norm = train_step(begun(config), [batch], config)["grad_norm"]
    accumulate_gradients(state := begun(config), [batch], config.objective, config.schedule.total_steps)
    gradients = [parameter.grad for parameter in state.student.heads.parameters()]
    expected = sum(gradient.square().sum() for gradient in gradients if gradient is not None) ** 0.5
    torch.testing.assert_close(norm, expected)


@pytest.mark.heavy
@pytest.mark.parametrize("saved_at", [1, 3, 4])
def test_a_run_restored_while_heads_warm_up_goes_on_as_if_nothing_had_happened(tmp_path, saved_at):
    released(tmp_path / "npz")
    config = _warmed(tmp_path / "npz", objective__prototype_freeze=0.2)
    state = _trained(begun(config), saved_at, config)
    save_checkpoint(state, str(tmp_path), {})
    found = newest_checkpoint(str(tmp_path))
    assert found
    load_checkpoint(restored := new_state(config), found)
    expected = numbers(_trained(state, 3, config))
    torch.testing.assert_close(numbers(_trained(restored, 3, config)), expected, rtol=0, atol=0)


@pytest.mark.slow
def test_weights_that_do_not_fit_are_told_in_the_run_folder_and_end_the_run(tmp_path):
    (told,) = run_on_ranks(1, _with_misfits, str(tmp_path), fresh=True)
    (event,) = RunFolder(f"{tmp_path}/run").read_events()
    assert (event["kind"], event["error"], event["is_final"]) == ("failure", "of another size", True)
    assert told == "of another size"


@pytest.mark.parametrize(("may_pass", "is_final"), [(True, False), (False, True)])
def test_storage_that_may_come_back_is_no_final_failure(tmp_path, may_pass, is_final):
    note_failure(folder := RunFolder(str(tmp_path)), 3, StorageError("away", may_pass))
    assert [event["is_final"] for event in folder.read_events()] == [is_final]


def _with_misfits(folder: str) -> str:
    def refuse(state, config):
        raise ValueError("of another size")

    worker_loop.load_initial_weights = refuse
    run = toy_job(tiny_run(Path(folder), "unused"), f"{folder}/run")
    with pytest.raises(ValueError) as error:
        train_worker(run, torch.device("cpu"), lambda: (0, iter(())), lambda metrics: None)
    return str(error.value)
