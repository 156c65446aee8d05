"""Checkpoints: what a load restores, on how many ranks, and what a damaged one does."""

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import run_on_ranks
from torch import Tensor
from toy_state import assert_equal, numbers_of, toy_state, trained

from tips_ray import storage
from tips_ray.runs.checkpoint import (
    CheckpointInfo,
    checkpoint_at,
    drop_old_checkpoints,
    from_newest,
    list_checkpoints,
    mark_damaged,
    newest_checkpoint,
)
from tips_ray.storage import StorageError
from tips_ray.storage.local import HELD, PREFIX, locked_temporary_folder
from tips_ray.train.checkpointing import load_checkpoint, save_checkpoint
from tips_ray.train.state import TrainState

pytestmark = pytest.mark.filterwarnings("error")
HEAVY, VARIANT = pytest.mark.heavy, pytest.mark.variant
LAYERED = {"optimizer__layer_decay": 0.5, "optimizer__patch_embed_lr_factor": 0.2}
ADAFACTOR = {"optimizer__name": "adafactor"}
CORRECTED = {"objective__center_start": "bias_corrected"}  # counts the steps
FROZEN = {"objective__prototype_freeze": 0.4}  # 4 steps of 10: until then no optimizer state of the prototypes


@pytest.fixture(scope="module")
def _states_saved(tmp_path_factory) -> Callable[[int], Path]:
    """Saves an untrained state that claims to be at a step, when it is first asked for that step."""
    folder, state = tmp_path_factory.mktemp("saved"), toy_state()

    def saved(step: int) -> Path:
        state.step = step
        return Path(save_checkpoint(state, str(folder), {"data_fingerprint": "abc"}).uri)

    return cache(saved)


@pytest.fixture
def saved(_states_saved) -> Callable[..., list[CheckpointInfo]]:
    """Puts copies of checkpoints of these steps into a folder."""

    def put(folder: Path, *steps: int) -> list[CheckpointInfo]:
        for made in map(_states_saved, steps):
            shutil.copytree(made, folder / made.name)
        return [checkpoint_at(str(folder), step) for step in steps]

    return put


def _saved(folder: str | Path, *steps: int) -> list[CheckpointInfo]:
    """Checkpoints that are really saved there."""
    state, found = toy_state(), []
    for state.step in steps:
        found.append(save_checkpoint(state, str(folder), {"data_fingerprint": "abc"}))
    return found


@pytest.mark.parametrize(
    ("values", "steps"),
    [
        (FROZEN, 2),
        pytest.param(LAYERED, 0, marks=HEAVY),
        pytest.param(FROZEN | ADAFACTOR, 5, marks=HEAVY),
        *(pytest.param(FROZEN, steps, marks=VARIANT) for steps in (0, 5)),
        *(pytest.param(LAYERED, steps, marks=VARIANT) for steps in (2, 5)),
        *(pytest.param(FROZEN | ADAFACTOR, steps, marks=VARIANT) for steps in (0, 2)),
        (CORRECTED, 2),
    ],
)
def test_a_restored_run_goes_on_as_if_nothing_had_happened(tmp_path, values, steps):
    state = trained(toy_state(**values), steps, **values)
    state.bad_rows, state.skipped_steps = 7, 2
    load_checkpoint(restored := toy_state(**values), save_checkpoint(state, str(tmp_path), {}))
    assert_equal(trained(restored, 4, **values), trained(state, 4, **values))


@pytest.mark.heavy
@pytest.mark.parametrize("folder", ["s3", pytest.param("local", marks=VARIANT)], indirect=True)
@pytest.mark.parametrize("values", [{}, *(pytest.param(one, marks=VARIANT) for one in (LAYERED, ADAFACTOR))])
def test_two_ranks_write_what_one_reads_and_the_other_way_round(folder, values):
    both = run_on_ranks(2, _trained_and_saved, folder, values, dict(os.environ))
    load_checkpoint(alone := toy_state(**values), checkpoint_at(folder, 2))
    torch.testing.assert_close(numbers_of(alone), both[0], rtol=0, atol=0)
    save_checkpoint(alone, f"{folder}/alone", {})
    for found in run_on_ranks(2, _loaded, f"{folder}/alone", values, dict(os.environ)):
        torch.testing.assert_close(found, both[0], rtol=0, atol=0)


@pytest.mark.parametrize("values", [pytest.param({}, marks=VARIANT), pytest.param(ADAFACTOR, marks=pytest.mark.slow)])
def test_four_ranks_with_two_copies_write_what_one_and_two_read(tmp_path, values):
    four = run_on_ranks(4, _trained_and_saved, str(tmp_path), values, dict(os.environ))
    load_checkpoint(alone := toy_state(**values), checkpoint_at(str(tmp_path), 2))
    for found in (numbers_of(alone), *run_on_ranks(2, _loaded, str(tmp_path), values, dict(os.environ))):
        torch.testing.assert_close(found, four[0], rtol=0, atol=0)


def _trained_and_saved(folder: str, values: dict[str, Any], environment: dict[str, str]) -> dict[str, Tensor]:
    os.environ.update(environment)
    save_checkpoint(state := trained(toy_state(**values), 2, **values), folder, {})
    return numbers_of(state)


def _loaded(folder: str, values: dict[str, Any], environment: dict[str, str]) -> dict[str, Tensor]:
    os.environ.update(environment)
    load_checkpoint(state := toy_state(**values), checkpoint_at(folder, 2))
    return numbers_of(state)


def test_an_empty_folder_has_no_checkpoint(tmp_path):
    assert newest_checkpoint(str(tmp_path)) is None and list_checkpoints(str(tmp_path)) == []


@pytest.mark.heavy
def test_the_newest_of_several_is_found_with_its_manifest(tmp_path, saved):
    saved(tmp_path, 1, 2)
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
        pytest.param(_no_manifest, None, marks=HEAVY),
        pytest.param(_torn_manifest, "manifest.json", marks=HEAVY),
        pytest.param(_missing_file, "__0_0.distcp is missing", marks=HEAVY),
        pytest.param(_cut_file, "bytes instead of", marks=HEAVY),
        (_flipped_byte, "sha256 of __0_0.distcp"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_passed_over_for_the_one_before(tmp_path, caplog, damage, words, saved):
    _, last = saved(tmp_path, 1, 2)
    damage(Path(last.uri))
    with caplog.at_level(logging.WARNING):
        found = from_newest(str(tmp_path), _loaded_here)
    assert found and found.step == 1
    named = [record.getMessage() for record in caplog.records if record.name.startswith("tips_ray")]
    assert len(named) == bool(words) and all(last.uri in line and words in line for line in named)


@pytest.mark.heavy
@pytest.mark.parametrize("damage", [_missing_file, _cut_file, _flipped_byte])
def test_a_checkpoint_damaged_after_it_was_found_is_not_loaded(tmp_path, damage, saved):
    (found,) = saved(tmp_path, 1)
    damage(Path(found.uri))
    with pytest.raises(ValueError, match=r"step-00000001 cannot be loaded: .*__0_0\.distcp"):
        load_checkpoint(toy_state(), found)


@pytest.mark.heavy
def test_another_version_of_the_format_is_refused_and_nothing_older_taken_in_its_place(tmp_path, saved):
    _, last = saved(tmp_path, 1, 2)
    path = Path(last.uri, "manifest.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 3}))
    with pytest.raises(ValueError, match="step-00000002 has format version 3, this program reads version 2"):
        newest_checkpoint(str(tmp_path))


@pytest.mark.parametrize("content", ["[]", "{}", "3"])
def test_what_is_no_manifest_makes_no_checkpoint(tmp_path, content, saved):
    first, last = saved(tmp_path, 1, 2)
    Path(last.uri, "manifest.json").write_text(content)
    assert [found.step for found in list_checkpoints(str(tmp_path))] == [first.step]


@pytest.mark.heavy
def test_checkpoints_of_a_store_that_is_busy_are_neither_passed_over_nor_deleted(tmp_path, monkeypatch, saved):
    saved(tmp_path, 1, 2, 3)

    def busy(uri: str, *arguments: int) -> bytes:
        raise StorageError(f"{uri}: the store is busy", may_pass=True)

    with monkeypatch.context() as patch:
        patch.setattr(storage, "read_bytes", busy)
        for action in (newest_checkpoint, lambda uri: drop_old_checkpoints(uri, 3, keep_last=1)):
            with pytest.raises(StorageError, match="the store is busy"):
                action(str(tmp_path))
    assert [found.step for found in list_checkpoints(str(tmp_path))] == [1, 2, 3]


def test_folders_of_processes_that_were_killed_go_and_those_of_living_ones_stay(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = tmp_path / f"{PREFIX}dead"
    dead.mkdir()
    (dead / HELD).touch()
    with locked_temporary_folder() as living:
        assert not dead.exists() and not list(living.iterdir())
        with locked_temporary_folder() as other:
            assert set(tmp_path.iterdir()) == {living.parent, other.parent}
    assert not list(tmp_path.iterdir())


def _loaded_here(checkpoint: CheckpointInfo) -> TrainState:
    load_checkpoint(state := toy_state(), checkpoint)
    return state


@pytest.mark.heavy
@pytest.mark.parametrize("damage", [_missing_file, _cut_file])
def test_a_checkpoint_without_all_of_its_bytes_is_passed_over_before_any_is_read(tmp_path, damage, monkeypatch, saved):
    _, last = saved(tmp_path, 1, 2)
    damage(Path(last.uri))
    monkeypatch.setattr(storage, "download", None)
    found = newest_checkpoint(str(tmp_path))
    assert found and found.step == 1


def test_a_checkpoint_that_was_marked_as_damaged_is_found_no_more_and_its_step_can_be_saved_again(tmp_path):
    _, last = _saved(tmp_path, 1, 2)
    mark_damaged(last, "sha256 differs")
    found = newest_checkpoint(str(tmp_path))
    assert found and found.step == 1 and [one.step for one in list_checkpoints(str(tmp_path))] == [1]
    assert json.loads(Path(last.uri, "manifest.json").read_text())["damaged"] == "sha256 differs"
    _saved(tmp_path, 2)
    assert [one.step for one in list_checkpoints(str(tmp_path))] == [1, 2]


@pytest.mark.heavy
def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path):
    _, last = _saved(tmp_path, 1, 2)
    _flipped_byte(Path(last.uri))
    _saved(tmp_path, 2)
    found = from_newest(str(tmp_path), _loaded_here)
    assert found and found.step == 2


@pytest.mark.heavy
def test_the_newest_stay_and_what_broken_saves_left_goes(tmp_path, saved):
    infos = saved(tmp_path, 1, 2, 3, 4)
    _no_manifest(Path(infos[2].uri))
    drop_old_checkpoints(str(tmp_path), 4, keep_last=2)
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-00000002", "step-00000004"]


@pytest.mark.heavy
@pytest.mark.parametrize("folder", ["local", pytest.param("s3", marks=VARIANT)], indirect=True)
def test_checkpoints_of_every_so_many_steps_stay_for_ever_beside_the_newest(folder):
    _saved(folder, *range(1, 8))
    drop_old_checkpoints(folder, 7, keep_last=2, keep_every_steps=3)
    assert [found.step for found in list_checkpoints(folder)] == [3, 6, 7]
    _saved(folder, 8)
    drop_old_checkpoints(folder, 8, keep_last=1, keep_every_steps=3)
    assert [found.step for found in list_checkpoints(folder)] == [3, 6, 8]


@pytest.mark.heavy
def test_a_damaged_checkpoint_ahead_does_not_push_out_the_good_one(tmp_path, saved):
    *_, ahead = saved(tmp_path, 1, 2, 4)
    _flipped_byte(Path(ahead.uri))
    drop_old_checkpoints(str(tmp_path), 2, keep_last=1)
    found = from_newest(str(tmp_path), _loaded_here)
    assert found and found.step == 2
