"""Bad steps planted into the loop on two ranks: caught before the update, saved, replayed on one process."""

import json
from dataclasses import replace
from functools import partial
from math import isfinite
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from ranks import run_on_ranks
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from toy import TOY, toy_batch
from toy_run import toy_job

from jobs.cli import main
from tips_ray import storage
from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.distributed import rank, world_size
from tips_ray.models.heads import PrototypeHead, PrototypeScores
from tips_ray.runs.checkpoint import newest_checkpoint
from tips_ray.runs.folder import RunFolder
from tips_ray.train.guard import BadStep, list_bad_steps
from tips_ray.train.loop import train
from tips_ray.train.parallelize import shard
from tips_ray.train.replay import Replay, replay
from tips_ray.train.run_recorder import RunRecorder
from tips_ray.train.state import TrainState, new_state

pytestmark = pytest.mark.heavy
IMAGES, BAD_STEP, STEPS = 4, 2, 4
CPU = torch.device("cpu")


def _config(workers: int, **values: Any) -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "resources": {"workers": workers}}
    sizes = {"global_batch_images": IMAGES * workers, "log_every_steps": 1, "micro_batch_images": 2}
    keys = {key.replace("__", "."): value for key, value in values.items()}
    return override(RunConfig, {**TOY, **run, **sizes}, {"schedule.total_steps": STEPS, **keys})


def _prepared(config: RunConfig, student, teacher) -> None:
    dtype = torch.bfloat16 if config.resources.dtype == "bf16" else torch.float32
    shard(student, teacher, init_device_mesh("cpu", (world_size(),)), dtype)


def _numbers(state: TrainState) -> dict[str, Tensor]:
    """Every number that a step changes, gathered from all ranks."""
    networks = {"student": state.student, "teacher": state.teacher, "centers": state.centers}
    found = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    for name, parameter in state.student.named_parameters():
        found |= {f"optimizer.{name}.{key}": value for key, value in state.optimizer.state[parameter].items()}
    whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in found.items()}
    return {key: value.clone() for key, value in whole.items()}


class _Trial:
    """A run of the loop in a folder, without Ray; `plant` spoils the batch or the state of the bad step."""

    def __init__(self, uri: str, plant: str, config: RunConfig) -> None:
        self.uri, self.plant, self.config = uri, plant, config
        self.state = new_state(config, prepare=partial(_prepared, config) if world_size() > 1 else None)
        self.before: dict[str, Tensor] = {}
        self.after: dict[str, Tensor] = {}
        if rank() == 0:
            storage.write_text(storage.join(uri, "config.yaml"), yaml.safe_dump(config.model_dump(mode="json")))
        self.recorder = RunRecorder(toy_job(config, uri), 0, CPU, lambda *_: None)

    def run(self) -> str:
        """Run the loop; returns the sentence of its error, empty if there is none."""
        try:
            train(self.state, self.steps(), self.config, self.recorder)
        except FloatingPointError as error:
            return str(error)
        self.recorder.close()
        return ""

    def steps(self):
        while True:
            step = self.state.step
            micro_batches = [self._batch(step, place) for place in range(IMAGES // 2)]
            if step == BAD_STEP:
                self.after = _numbers(self.state)
            if step + 1 == BAD_STEP:
                micro_batches = PLANTS[self.plant](self.state, micro_batches)
                self.before = _numbers(self.state)
            yield micro_batches

    def _batch(self, step: int, place: int) -> Batch:
        first = 10 * step + IMAGES * rank() + 2 * place
        names = {"sample_id": torch.tensor([first, first + 1]).numpy(), "step": torch.tensor([step, step]).numpy()}
        keys = torch.tensor([first, first + 1]).numpy().astype(str)
        self.recorder.note_rows(
            {**names, "key": keys, "valid": torch.ones(2, dtype=torch.bool).numpy(), "reject": keys}
        )
        return toy_batch(2, seed=first).to("cpu", torch.float32)


def _spoiled_weight(state: TrainState, micro_batches: list[Batch]) -> list[Batch]:
    block: Any = state.student.image.blocks[1]
    weight = block.mlp.fc2.weight
    if rank() == world_size() - 1:
        getattr(weight, "_local_tensor", weight).data[0, 3] = torch.nan
    return micro_batches


def _spoiled_image(state: TrainState, micro_batches: list[Batch]) -> list[Batch]:
    if rank() != world_size() - 1:
        return micro_batches
    crops = micro_batches[1].global_crops_BCHW.clone()
    crops[1, 0, 5, 5] = torch.inf
    return [micro_batches[0], replace(micro_batches[1], global_crops_BCHW=crops)]


def _square_root_of_zero(state: TrainState, micro_batches: list[Batch]) -> list[Batch]:
    """0 in the forward pass, NaN in the backward one; the replaying process calls it too."""
    forward = PrototypeHead.forward

    def spoiled(self: PrototypeHead, features_RD: Tensor) -> PrototypeScores:
        unit_RD, prototypes_KD = forward(self, features_RD)
        return PrototypeScores(unit_RD + (features_RD * 0).abs().sum(dim=1, keepdim=True).sqrt(), prototypes_KD)

    PrototypeHead.forward = spoiled
    return micro_batches


def _overflowing_norm(state: TrainState, micro_batches: list[Batch]) -> list[Batch]:
    parameter: Any = state.student.log_temperature
    getattr(parameter, "_local_tensor", parameter).data.fill_(-70.0)
    return micro_batches


PLANTS = {
    "weight": _spoiled_weight,
    "image": _spoiled_image,
    "root": _square_root_of_zero,
    "norm": _overflowing_norm,
}


def _outcome(uri: str, plant: str, values: dict[str, Any]) -> dict[str, Any]:
    trial = _Trial(uri, plant, _config(world_size(), **values))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PrototypeHead, "forward", PrototypeHead.forward)  # put back at the end, whatever is planted
        words = trial.run()
    after = _numbers(trial.state)
    is_equal = [torch.equal(after[name].nan_to_num(7.0), value.nan_to_num(7.0)) for name, value in trial.before.items()]
    return {"words": words, "is_unchanged": all(is_equal), "numbers": len(is_equal), "step": trial.state.step}


def _stopped(folder: Path, plant: str, **values: Any) -> tuple[BadStep, Replay]:
    """Two ranks meet the bad step and stop before its update; it is replayed here."""
    for found in run_on_ranks(2, _outcome, str(folder), plant, values):
        assert found["words"].startswith(f"step {BAD_STEP} is bad, ") and "`tips-ray replay`" in found["words"]
        assert found["is_unchanged"] and found["numbers"] > 100 and found["step"] == BAD_STEP - 1
    return _replayed(folder)


def _replayed(folder: Path) -> tuple[BadStep, Replay]:
    """The one bad step of two ranks, and its replay here."""
    (bad_step,) = list_bad_steps(str(folder))
    replayed = replay(bad_step, str(folder), CPU)
    assert replayed.is_reproduced(bad_step) and (bad_step.step, bad_step.workers) == (BAD_STEP, 2)
    return bad_step, replayed


@pytest.mark.parametrize("dtype", [pytest.param("fp32", marks=pytest.mark.variant), "bf16"])
def test_a_weight_that_is_not_a_number_is_found_in_its_layer(tmp_path, dtype):
    bad_step, replayed = _stopped(tmp_path, "weight", resources__dtype=dtype)
    first = replayed.first
    assert (
        bad_step.what == "loss" and first and (first.kind, first.name) == ("output", "student.image.blocks.1.mlp.fc2")
    )
    assert (replayed.rank, replayed.micro_batch, first.images) == (0, 0, (0, 1))
    beside = {each.name: each for each in first.beside}
    assert beside["weight"].not_finite == 1 and beside["input.0.0"].not_finite == 0
    (event,) = [event for event in RunFolder(str(tmp_path)).read_events() if event["kind"] == "bad_step"]
    assert (event["step"], event["what"], event["ranks"]) == (BAD_STEP, "loss", [0, 1])
    assert (event["uri"], event["policy"]) == (bad_step.uri, "stop")


@pytest.fixture(scope="module")
def skipped(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """The folder of a run on two ranks that skipped a step with an infinite pixel, and what each rank found."""
    folder = tmp_path_factory.mktemp("skipped")
    return folder, run_on_ranks(2, _skipping, str(folder), {"guard__policy": "skip", "guard__max_skipped": 1})


def test_one_infinite_pixel_is_found_in_its_image(skipped, capsys):
    _, replayed = _replayed(folder := skipped[0])
    first = replayed.first
    assert first and (first.kind, first.name, first.tensor.not_finite) == ("input", "global_crops_BCHW", 1)
    assert (replayed.rank, replayed.micro_batch, first.images) == (1, 1, (1,))
    assert replayed.rows == {"sample_id": [17], "key": ["17"]}
    assert main(["replay", str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "reproduced: the loss is not finite" in shown
    assert "first bad tensor: input global_crops_BCHW, as the data brought it\n" in shown
    assert "in micro-batch 1 of rank 1, images 1 (sample 17, 17)\n" in shown
    assert "global_crops_BCHW [2, 3, 56, 56] torch.float32: 1 not finite, finite values from " in shown


def test_a_gradient_that_is_not_a_number_is_told_from_its_finite_loss(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(PrototypeHead, "forward", PrototypeHead.forward)  # put back at the end
    for found in run_on_ranks(2, _outcome, str(tmp_path), "root", {}):
        assert found["words"].startswith("step 2 is bad, grad_norm not finite, and nothing was updated; ")
        assert found["is_unchanged"]
    (bad_step,) = list_bad_steps(str(tmp_path))
    assert not replay(bad_step, str(tmp_path), CPU).is_reproduced(bad_step)  # this process takes no root yet
    assert main(["replay", str(tmp_path)]) == 1
    assert "not reproduced: " in (shown := capsys.readouterr().out) and "every tensor is finite" in shown
    PLANTS["root"](None, [])  # pyright: ignore[reportArgumentType]
    replayed = replay(bad_step, str(tmp_path), CPU)
    assert replayed.is_reproduced(bad_step) and bad_step.what == "gradient"
    assert replayed.first and (replayed.first.kind, replayed.first.name) == ("gradient", "student.image.norm")
    assert (replayed.rank, replayed.micro_batch, replayed.first.images) == (0, 0, (0, 1))


def test_what_is_finite_in_a_bad_step_is_replayed_to_the_last_digits(tmp_path):
    bad_step, replayed = _stopped(tmp_path, "norm")
    assert bad_step.metrics.keys() == replayed.metrics.keys() and bad_step.what == "gradient"
    for name in bad_step.metrics.keys() - {"grad_norm"}:
        assert replayed.metrics[name] == pytest.approx(bad_step.metrics[name], rel=1e-6)


def test_a_step_saved_by_one_process_is_replayed_from_any_storage(folder, capsys):
    words = _outcome(folder, "image", {})["words"]
    assert words.startswith("step 2 is bad, ") and f" {folder}/bad_steps/step-00000002: " in words
    assert main(["replay", folder, "--step", "2"]) == 0
    assert "in micro-batch 1 of rank 0, images 1 (sample 13, 13)\n" in capsys.readouterr().out


def test_a_skipped_step_moves_nothing_but_the_step_and_is_counted(skipped):
    folder, found = skipped
    assert found == 2 * [{"words": "", "step": STEPS, "is_unchanged": True}]
    lines = RunFolder(str(folder)).read_metrics()
    assert [line["guard/skipped"] for line in lines] == [0, 1, 1, 1]
    assert [isfinite(line["loss/total"]) for line in lines] == [True, False, True, True]
    assert ["health/temperature" in line for line in lines] == [True, False, True, True]
    assert newest_checkpoint(str(folder / "checkpoints")).manifest["skipped_steps"] == 1  # pyright: ignore


@pytest.mark.slow
def test_a_bad_step_after_as_many_as_may_be_skipped_stops_the_run(tmp_path):
    values = {"guard__policy": "skip", "guard__max_skipped": 0}
    for found in run_on_ranks(2, _skipping, str(tmp_path), values):
        assert "guard.max_skipped (0) steps are skipped already" in found["words"]


def _skipping(uri: str, values: dict[str, Any]) -> dict[str, Any]:
    trial = _Trial(uri, "image", _config(world_size(), **values))
    words, after = trial.run(), trial.after
    is_unchanged = all(torch.equal(after[name], value) for name, value in trial.before.items()) if after else None
    return {"words": words, "step": trial.state.step, "is_unchanged": is_unchanged}


@pytest.mark.parametrize(("line", "message"), [("", "has no bad step"), ("--step 4", "--step 4 is no bad step of")])
def test_a_step_that_was_not_saved_is_a_sentence(tmp_path, capsys, line, message):
    (tmp_path / "config.yaml").write_text("name: toy")
    if line:
        (tmp_path / "bad_steps/step-00000003").mkdir(parents=True)
        facts = {"step": 3, "workers": 1, "what": "loss", "metrics": {"loss/total": "nan"}}
        (tmp_path / "bad_steps/step-00000003/bad_step.json").write_text(json.dumps(facts))
    assert main(["replay", str(tmp_path), *line.split()]) == 2
    assert message in capsys.readouterr().err
