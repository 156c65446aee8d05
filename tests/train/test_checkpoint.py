"""Checkpoints: what comes back, on how many ranks, and what a damaged one does."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor
from torch.distributed.tensor import DTensor
from toy import toy_batch, toy_config

from tips_ray.distributed import world_size
from tips_ray.train.checkpoint import (
    CheckpointInfo,
    checkpoint_at,
    drop_old_checkpoints,
    list_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)
from tips_ray.train.parallelize import shard, worker_mesh
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import train_step

pytestmark = pytest.mark.filterwarnings("error")
LAYERED = {"optimizer__layer_decay": 0.5, "optimizer__patch_embed_lr_factor": 0.2}
ADAFACTOR = {"optimizer__name": "adafactor"}
FROZEN = {"objective__prototype_freeze": 0.4}  # 4 steps of 10: no optimizer state of the prototypes in that time


def _new(**values) -> TrainState:
    """On several ranks sharded; four of them hold two copies."""

    def prepare(student, teacher):
        shard(student, teacher, worker_mesh("cpu", replicas=2 if world_size() == 4 else 1))

    return new_state(toy_config(**values), prepare=prepare if world_size() > 1 else None)


def _trained(state: TrainState, steps: int, **values) -> TrainState:
    for _ in range(steps):
        train_step(state, [toy_batch(4, seed=state.step).to("cpu", torch.float32)], toy_config(**values))
    return state


def _whole(state: TrainState) -> dict[str, Tensor]:
    """Every number of a state, optimizer included."""
    networks = {"student": state.student, "teacher": state.teacher, "centers": state.centers}
    found = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    for name, parameter in state.student.named_parameters():
        found |= {f"optimizer.{name}.{key}": value for key, value in state.optimizer.state[parameter].items()}
        group = next(group for group in state.optimizer.param_groups if any(parameter is p for p in group["params"]))
        rates = ("lr", "lr_factor", "weight_decay", "decay_factor")
        found |= {f"optimizer.{name}.{rate}": torch.tensor(group[rate]) for rate in rates}
    return {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in found.items()}


def _saved(folder: Path, *steps: int) -> list[CheckpointInfo]:
    """Checkpoints of an untrained state that claims to be at these steps."""
    state, found = _new(), []
    for state.step in steps:
        found.append(save_checkpoint(state, str(folder), {"data_fingerprint": "abc"}))
    return found


def _assert_equal(state: TrainState, other: TrainState) -> None:
    torch.testing.assert_close(_whole(state), _whole(other), rtol=0, atol=0)
    assert (state.step, state.bad_rows) == (other.step, other.bad_rows)


@pytest.mark.parametrize("steps", [0, 2, 5])
@pytest.mark.parametrize("values", [FROZEN, LAYERED, FROZEN | ADAFACTOR], ids=["plain", "layered", "adafactor"])
def test_a_restored_run_goes_on_as_if_nothing_had_happened(tmp_path, steps, values):
    state = _trained(_new(**values), steps, **values)
    state.bad_rows = 7
    load_checkpoint(restored := _new(**values), save_checkpoint(state, str(tmp_path), {}))
    _assert_equal(_trained(restored, 4, **values), _trained(state, 4, **values))


@pytest.mark.heavy
@pytest.mark.parametrize("values", [{}, LAYERED, ADAFACTOR], ids=["plain", "layered", "adafactor"])
def test_two_ranks_write_what_one_reads_and_the_other_way_round(tmp_path, values):
    both = run_on_ranks(2, _trained_and_saved, str(tmp_path), values)
    load_checkpoint(alone := _new(**values), checkpoint_at(str(tmp_path), 2))
    torch.testing.assert_close(_whole(alone), both[0], rtol=0, atol=0)
    save_checkpoint(alone, str(tmp_path / "alone"), {})
    for found in run_on_ranks(2, _loaded, str(tmp_path / "alone"), values):
        torch.testing.assert_close(found, both[0], rtol=0, atol=0)


@pytest.mark.heavy
@pytest.mark.parametrize("values", [{}, ADAFACTOR], ids=["plain", "adafactor"])
def test_four_ranks_with_two_copies_write_what_one_and_two_read(tmp_path, values):
    four = run_on_ranks(4, _trained_and_saved, str(tmp_path), values)
    load_checkpoint(alone := _new(**values), checkpoint_at(str(tmp_path), 2))
    for found in (_whole(alone), *run_on_ranks(2, _loaded, str(tmp_path), values)):
        torch.testing.assert_close(found, four[0], rtol=0, atol=0)


def _trained_and_saved(folder: str, values: dict[str, Any]) -> dict[str, Tensor]:
    save_checkpoint(state := _trained(_new(**values), 2, **values), folder, {})
    return _whole(state)


def _loaded(folder: str, values: dict[str, Any]) -> dict[str, Tensor]:
    load_checkpoint(state := _new(**values), checkpoint_at(folder, 2))
    return _whole(state)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(str(tmp_path)) is None and list_checkpoints(str(tmp_path)) == []


def test_the_newest_of_several_is_found_with_its_manifest(tmp_path):
    _saved(tmp_path, 1, 2)
    found = newest_checkpoint(str(tmp_path))
    assert found and found.step == 2 and found.manifest["data_fingerprint"] == "abc"
    assert found == checkpoint_at(str(tmp_path), 2)


def _no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()


def _torn_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"version": 1, "st')


def _missing_file(folder: Path) -> None:
    (folder / "__0_0.distcp").unlink()


def _cut_file(folder: Path) -> None:
    content = (folder / "__0_0.distcp").read_bytes()
    (folder / "__0_0.distcp").write_bytes(content[:-1])


def _flipped_byte(folder: Path) -> None:
    content = bytearray((folder / "__0_0.distcp").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "__0_0.distcp").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_manifest, None),
        (_torn_manifest, "manifest.json"),
        (_missing_file, "__0_0.distcp is missing"),
        (_cut_file, "bytes instead of"),
        (_flipped_byte, "sha256 of __0_0.distcp"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over_for_the_one_before(tmp_path, caplog, damage, words):
    _, last = _saved(tmp_path, 1, 2)
    damage(Path(last.uri))
    with caplog.at_level(logging.WARNING):
        found = newest_checkpoint(str(tmp_path))
    assert found and found.step == 1
    named = [record.getMessage() for record in caplog.records if record.name.startswith("tips_ray")]
    assert len(named) == bool(words) and all(last.uri in line and words in line for line in named)


@pytest.mark.parametrize("damage", [_missing_file, _cut_file, _flipped_byte])
def test_a_checkpoint_damaged_after_it_was_found_is_not_loaded(tmp_path, damage):
    (found,) = _saved(tmp_path, 1)
    damage(Path(found.uri))
    with pytest.raises(ValueError, match=r"step-00000001 cannot be loaded: .*__0_0\.distcp"):
        load_checkpoint(_new(), found)


def test_another_version_of_the_format_is_refused_and_nothing_older_taken_in_its_place(tmp_path):
    _, last = _saved(tmp_path, 1, 2)
    path = Path(last.uri, "manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 2}))
    with pytest.raises(ValueError, match="step-00000002 has format version 2, this program reads version 1"):
        newest_checkpoint(str(tmp_path))


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    _, last = _saved(tmp_path, 1, 2)
    _flipped_byte(Path(last.uri))
    _saved(tmp_path, 2)
    found = newest_checkpoint(str(tmp_path))
    assert found and found.step == 2


def test_the_newest_stay_and_what_broken_saves_left_goes(tmp_path):
    infos = _saved(tmp_path, 1, 2, 3, 4)
    _no_manifest(Path(infos[2].uri))
    drop_old_checkpoints(str(tmp_path), 4, keep_last=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000004"]


def test_a_damaged_checkpoint_ahead_does_not_push_out_the_good_one(tmp_path):
    *_, ahead = _saved(tmp_path, 1, 2, 4)
    _flipped_byte(Path(ahead.uri))
    drop_old_checkpoints(str(tmp_path), 2, keep_last=1)
    found = newest_checkpoint(str(tmp_path))
    assert found and found.step == 2
