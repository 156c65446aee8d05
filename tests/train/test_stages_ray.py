"""A run, a second stage from it, a student distilled from it: whole runs, the last of them on Ray Train."""

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from toy_run import tiny_run, write_scenes

from tips_ray.config import RunConfig
from tips_ray.launch import pretrain
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.checkpoint import newest_checkpoint
from tips_ray.runs.folder import RunFolder

pytestmark = [pytest.mark.ray, pytest.mark.slow]


def _teacher(config: RunConfig, folder) -> dict[str, Tensor]:
    found = newest_checkpoint(f"{config.storage}/{config.name}/checkpoints")
    assert found and found.step == config.schedule.total_steps
    dcp_to_torch_save(found.uri, folder / config.name)
    return torch.load(folder / config.name)["teacher"]


def test_a_run_its_second_stage_and_a_student_of_it_end_where_they_should(cluster, tmp_path):
    data, storage = write_scenes(tmp_path / "scenes", 16), tmp_path / "runs"
    first = tiny_run(storage, data, name="first", schedule__total_steps=6, image__width=32, text__width=32)
    uri = pretrain(first, RankTrainer())
    sizes = {"image__width": 32, "text__width": 32, "image__image_size_px": 56, "views__global_px": 56}
    start = {"start": {"uri": uri}, "captions__tokenizer": f"{uri}/tokenizer.json", "resources__workers": 1}
    second = tiny_run(storage, data, name="second", schedule__total_steps=4, **sizes, **start)
    frozen = {"objective__teacher": "frozen", "objective__frozen_teacher": uri}
    student = tiny_run(storage, data, name="student", schedule__total_steps=4, checkpoint_every_steps=2, **frozen)
    for config, key, trainer in ((second, "start", RankTrainer()), (student, "frozen_teacher", None)):
        begun, *_ = RunFolder(pretrain(config, trainer)).read_events()
        assert begun["kind"] == "start" and begun["from"][key]["checkpoint"].endswith("first/checkpoints/step-00000006")
    teacher = _teacher(first, tmp_path)
    torch.testing.assert_close(_teacher(student, tmp_path), teacher, rtol=0, atol=0)
    assert _teacher(second, tmp_path)["image.pos_embed"].shape == (1, 1 + 4 * 4, 32)
