"""Information of a checkpoint's targets over images on disk."""

from math import log
from pathlib import Path

import pytest
import yaml
from toy_run import scene_row, tiny_run

from tips_ray import storage
from tips_ray.train import held_out
from tips_ray.train.checkpointing import save_checkpoint
from tips_ray.train.held_out import held_out_information
from tips_ray.train.state import new_state

IMAGES = [scene_row(number)["image"] for number in range(6)]


def _run(folder: Path) -> str:
    """A run with untrained weights at steps 3 and 5, the latter with centres of its own."""
    config, uri = tiny_run(folder, "x"), str(folder / "run")
    state = new_state(config)
    storage.write_text(storage.join(uri, "config.yaml"), yaml.safe_dump(config.model_dump(mode="json")))
    for state.step in (3, 5):
        save_checkpoint(state, storage.join(uri, "checkpoints"), {})
        state.centers.distillation_K[::2] += 0.05
    return uri


def test_both_heads_are_measured_within_their_bounds_and_in_batches_of_any_size(tmp_path, monkeypatch):
    uri = _run(tmp_path)
    found = held_out_information(uri, IMAGES)
    assert (found["images"], found["prototypes"], found["step"]) == (6, 24, 5)
    for head in ("distillation", "masked_image"):
        information, mutual = found[f"{head}/information"], found[f"{head}/mutual_information"]
        assert information < mutual < log(24) and 1 <= found[f"{head}/winners"] <= 24
    assert 0 < found["distillation/mutual_information"] < log(6)
    monkeypatch.setattr(held_out, "IMAGES_AT_ONCE", 4)
    assert held_out_information(uri, IMAGES) == pytest.approx(found, rel=1e-4)


def test_a_checkpoint_is_measured_at_its_own_step_and_centres(tmp_path):
    uri = _run(tmp_path)
    before, after = (held_out_information(f"{uri}/checkpoints/step-0000000{step}", IMAGES) for step in (3, 5))
    assert (before["step"], after["step"]) == (3, 5) and after == held_out_information(uri, IMAGES)
    assert abs(before["distillation/information"] - after["distillation/information"]) > 1e-3


def test_a_broken_image_is_named_by_its_place(tmp_path):
    with pytest.raises(ValueError, match="image 2 cannot be used: "):
        held_out_information(_run(tmp_path), [*IMAGES[:2], b"no image", *IMAGES[2:]])
