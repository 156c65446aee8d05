"""Saving in the background: what is in a checkpoint, when it exists, and what is kept when a save fails."""

import logging
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_on_ranks
from toy_state import assert_equal, numbers_of, toy_state, trained

from tips_ray import storage
from tips_ray.checkpoint_io import CheckpointWriter, fill_tree, save_tree
from tips_ray.checkpoint_pickles import METADATA
from tips_ray.distributed import gather_objects, rank
from tips_ray.runs.checkpoint import checkpoint_at, digest_of, drop_old_checkpoints, newest_checkpoint
from tips_ray.storage import StorageError
from tips_ray.train.checkpointing import checkpoint_parts, load_checkpoint, save_checkpoint
from tips_ray.train.state import TrainState

pytestmark = pytest.mark.filterwarnings("error")


@pytest.fixture
def gate(monkeypatch) -> Iterator[threading.Event]:
    """An event; nothing is written to a local folder before it is set."""
    gate = threading.Event()
    delete, copy = storage.local.delete, storage.local.copy
    monkeypatch.setattr(storage.local, "delete", lambda path: (gate.wait(), delete(path)))
    monkeypatch.setattr(storage.local, "copy", lambda source, path: (gate.wait(), copy(source, path)))
    yield gate
    gate.set()


def test_the_thread_stays_on_the_gpu_of_its_rank_and_copies_nothing_ahead(tmp_path, monkeypatch):
    """By itself a thread begins on GPU 0, and where there is a GPU torch copies ahead in the current stream."""
    used, cuda = [], torch.cuda
    for module in (torch.accelerator, cuda):
        monkeypatch.setattr(module, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "current_device", lambda: 3)
    monkeypatch.setattr(cuda, "set_device", lambda device: used.append((device, threading.current_thread().name)))
    writer = CheckpointWriter(str(tmp_path), {}, "cuda:3")
    writer._thread.submit(lambda: None).result()
    writer.close()
    assert used == [(3, "checkpoint_0")]
    monkeypatch.setattr(cuda, "current_stream", lambda *_: pytest.fail("a stream of the GPU is asked for"))
    save_tree({"weights": {"a": torch.ones(3)}}, {"step": 1}, str(tmp_path), {})
    fill_tree(read := {"weights": {"a": torch.zeros(3)}}, checkpoint_at(str(tmp_path), 1))
    assert read["weights"]["a"].tolist() == [1, 1, 1]


def _spoilt(state: TrainState) -> TrainState:
    with torch.no_grad():
        for network in (state.student, state.teacher, state.centers):
            for tensor in network.state_dict().values():
                tensor.zero_()
        for averages in state.optimizer.state.values():
            for tensor in averages.values():
                tensor.zero_()
    state.step, state.bad_rows = -1, -1
    return state


@pytest.mark.heavy
def test_a_checkpoint_holds_the_state_at_its_step_whatever_becomes_of_it(tmp_path, gate):
    writer = CheckpointWriter(str(tmp_path), {})
    for steps in (2, 1):  # the second time in the memory of the first
        gate.clear()
        state, twin = trained(toy_state(), steps), trained(toy_state(), steps)
        state.bad_rows = twin.bad_rows = 3
        writer.start(*checkpoint_parts(state))
        _spoilt(state)
        assert writer.committed() is None
        gate.set()
        assert (found := writer.committed(wait=True)) is not None
        load_checkpoint(restored := toy_state(), found[0])
        assert_equal(restored, twin)
    writer.close()


@pytest.mark.heavy
def test_the_same_state_saved_twice_holds_its_newer_numbers(tmp_path):
    writer, state = CheckpointWriter(str(tmp_path), {}), toy_state()
    for _ in range(2):
        writer.start(*checkpoint_parts(trained(state, 1)))
        assert (found := writer.committed(wait=True)) is not None
        load_checkpoint(restored := toy_state(), found[0])
        assert_equal(restored, state)
    writer.close()


def test_a_checkpoint_is_told_of_once(tmp_path):
    writer, state = CheckpointWriter(str(tmp_path), {}), toy_state()
    assert writer.committed(wait=True) is None
    writer.start(*checkpoint_parts(state))
    assert (found := writer.committed(wait=True)) and found[0] == checkpoint_at(str(tmp_path), 0)
    assert writer.committed(wait=True) is None
    writer.close()


@pytest.mark.heavy
@pytest.mark.parametrize("slow_rank", [0, 1])
def test_a_checkpoint_is_told_of_when_the_last_rank_is_through_and_on_all_alike(tmp_path, slow_rank):
    assert run_on_ranks(2, _with_a_slow_rank, str(tmp_path), slow_rank) == [(None, slow_rank == 0, 0)] * 2


def _with_a_slow_rank(folder: str, slow_rank: int) -> tuple[Any, bool, int]:
    """Rank 0 is slow to drop old checkpoints, after all others; or rank 1 to upload, so that there is no manifest."""
    gate, upload = threading.Event(), storage.upload
    with pytest.MonkeyPatch.context() as patch:
        if slow_rank == rank() == 1:
            patch.setattr(storage, "upload", lambda path, uri: (gate.wait(), upload(path, uri)))
        writer = CheckpointWriter(folder, {}, after_commit=lambda step: gate.wait() if slow_rank == 0 else None)
        writer.start(*checkpoint_parts(toy_state()))
        if rank() != slow_rank == 0:
            writer.wait()
        gather_objects(None)
        early = writer.committed()
        exists = storage.exists(f"{folder}/step-00000000/manifest.json")
        gather_objects(None)
        gate.set()
        found = writer.committed(wait=True)
    assert found is not None
    return early, exists, found[0].step


@pytest.mark.heavy
def test_the_failure_of_one_rank_is_one_sentence_on_all_and_older_checkpoints_stand(tmp_path):
    one, other = run_on_ranks(2, _with_a_failing_rank, str(tmp_path))
    assert one == other and one.startswith("the checkpoint of step 5 was not saved, older ones stand: ")
    assert one.endswith("__1_0.distcp: the cure is known")
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000000"]
    assert newest_checkpoint(str(tmp_path))


def _with_a_failing_rank(folder: str) -> str:
    writer, state = CheckpointWriter(folder, {}), toy_state()
    writer.start(*checkpoint_parts(state))
    writer.committed(wait=True)
    state.step = 5
    with pytest.MonkeyPatch.context() as patch, pytest.raises(storage.StorageError) as error:
        if rank() == 1:
            patch.setattr(storage, "upload", _refused)
        writer.start(*checkpoint_parts(state))
        writer.committed(wait=True)
    return str(error.value)


def _refused(path: Any, uri: str) -> None:
    raise storage.StorageError(f"{uri}: the cure is known")


@pytest.mark.slow
def test_a_save_that_outlives_its_process_group_is_of_all_ranks_or_none(tmp_path):
    run_on_ranks(2, _with_an_ended_group, str(tmp_path), fresh=True)
    found = newest_checkpoint(str(tmp_path))
    assert found is None or {"__0_0.distcp", "__1_0.distcp", ".metadata"} == found.manifest["files"].keys()


def _with_an_ended_group(folder: str) -> None:
    gate, keep_trying = threading.Event(), storage.keep_trying
    storage.keep_trying = lambda action, seconds: (gate.wait(), keep_trying(action, seconds))
    writer = CheckpointWriter(folder, {})
    writer.start(*checkpoint_parts(toy_state()))
    dist.destroy_process_group()
    gate.set()
    writer.wait()


POINTS: dict[str, Callable[[str, str], bool]] = {
    "before the first file": lambda name, target: name == "delete",
    "between two files": lambda name, target: name == "copy" and target.endswith("distcp"),
    "before the manifest": lambda name, target: name == "write" and target.endswith("manifest.json"),
    "after the manifest": lambda name, target: name == "delete_folder" and target.endswith("step-00000001"),
}


@pytest.mark.heavy
@pytest.mark.parametrize(
    "point",
    [
        pytest.param("before the first file", marks=pytest.mark.variant),
        pytest.param("between two files", marks=pytest.mark.variant),
        "before the manifest",
        "after the manifest",
    ],
)
def test_a_kill_at_any_point_of_a_save_leaves_a_whole_checkpoint_and_no_half_one(tmp_path, monkeypatch, point):
    folder, temporary = tmp_path / "checkpoints", tmp_path / "temporary"
    temporary.mkdir()
    process = multiprocessing.get_context("forkserver").Process(target=_stuck, args=(folder, point, tmp_path))
    process.start()
    while not (tmp_path / "here").exists():
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    found = newest_checkpoint(str(folder))
    assert found and found.step == (2 if point == "after the manifest" else 1)
    load_checkpoint(restored := toy_state(), found)
    expected = torch.load(tmp_path / f"{found.step}.pt")
    torch.testing.assert_close(numbers_of(restored), expected, rtol=0, atol=0)
    restored.step = 3
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    save_checkpoint(restored, str(folder), {})
    drop_old_checkpoints(str(folder), 3, keep_last=1)
    assert [path.name for path in folder.iterdir()] == ["step-00000003"]
    assert not list(temporary.iterdir())


def _stuck(folder: Path, point: str, notes: Path) -> None:
    """Save step 1; begin to save step 2 and stop for ever at the given point."""
    tempfile.tempdir = str(notes / "temporary")
    save_checkpoint(state := trained(toy_state(), 1), str(folder), {})
    torch.save(numbers_of(state), notes / "1.pt")
    torch.save(numbers_of(trained(state, 1)), notes / "2.pt")
    for name in ("delete", "copy", "write", "delete_folder"):
        _stop_at(name, POINTS[point], notes / "here")
    drop = lambda step: drop_old_checkpoints(str(folder), step, keep_last=1)  # noqa: E731
    writer = CheckpointWriter(str(folder), {}, after_commit=drop)
    writer.start(*checkpoint_parts(state))
    writer.committed(wait=True)


def _stop_at(name: str, is_point: Callable[[str, str], bool], here: Path) -> None:
    go_on = getattr(storage.local, name)

    def call(*arguments: str) -> Any:
        if is_point(name, arguments[-1] if name == "copy" else arguments[0]):
            here.touch()
            time.sleep(3600)
        return go_on(*arguments)

    setattr(storage.local, name, call)


class _Code:
    """Runs code when it is unpickled: it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __deepcopy__(self, memo: dict) -> "_Code":
        return self

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["metadata", "value"])
def test_a_checkpoint_that_would_run_code_is_refused_in_a_sentence(tmp_path, place):
    mark, number = tmp_path / "ran", torch.zeros(1)
    is_value = place == "value"
    tree = {"number": torch.ones(1), "odd": _Code(mark) if is_value else 1.5}
    checkpoint = save_tree(tree, {"step": 1}, str(tmp_path / "checkpoints"), {})
    if not is_value:
        path = Path(checkpoint.uri, METADATA)
        path.write_bytes(pickle.dumps(_Code(mark)))
        entry = {"bytes": path.stat().st_size, "sha256": digest_of(path)}
        checkpoint.manifest["files"][METADATA] = entry
    with pytest.raises(StorageError, match=r"step-00000001 is refused: it holds pickled objects .*; take one whose"):
        fill_tree({"number": number, "odd": 0.0}, checkpoint)
    assert not mark.exists()


def test_values_that_are_no_tensors_come_back(tmp_path):
    checkpoint = save_tree({"a": {"b": 1.5, "betas": (0.9, 0.99), "no": None}}, {"step": 1}, str(tmp_path), {})
    tree: dict[str, Any] = {"a": {"b": 0.0, "betas": (0.0, 0.0), "no": 1}}
    fill_tree(tree, checkpoint)
    assert tree == {"a": {"b": 1.5, "betas": (0.9, 0.99), "no": None}}


@pytest.mark.parametrize("name", ["../outside", "/outside", ".."])
def test_a_manifest_that_names_a_file_outside_of_its_folder_writes_none(tmp_path, name):
    checkpoint = save_tree({"number": torch.ones(1)}, {"step": 1}, str(tmp_path / "checkpoints"), {})
    (tmp_path / "checkpoints" / "outside").write_bytes(b"x")
    checkpoint.manifest["files"][name] = {"bytes": 1, "sha256": ""}
    with pytest.raises(StorageError, match=r"cannot be loaded: its manifest names '.*', a file outside of it"):
        fill_tree({"number": torch.zeros(1)}, checkpoint)


def test_leftovers_that_cannot_be_deleted_do_not_fail_a_save(tmp_path, caplog):
    def drop(step: int) -> None:
        raise storage.StorageError("access is denied")

    writer = CheckpointWriter(str(tmp_path), {}, after_commit=drop)
    with caplog.at_level(logging.WARNING, "tips_ray"):
        writer.start(*checkpoint_parts(toy_state()))
        assert writer.committed(wait=True)
    own = logging.getLogger("tips_ray.checkpoint_io")
    assert "stay for now: access is denied" in caplog.text, (vars(own), vars(logging.root))
    writer.close()


def _checkpoints(s3: Any, tmp_path: Path) -> str:
    return f"{s3.make_bucket('saving')}/{tmp_path.name}"


def test_a_store_that_is_away_for_a_while_costs_nothing(door, s3, tmp_path):
    uri, state = _checkpoints(s3, tmp_path), trained(toy_state(), 1)
    writer = CheckpointWriter(uri, {}, patience_seconds=60)
    door.is_shut = True
    writer.start(*checkpoint_parts(state))
    twin = trained(toy_state(), 1)
    trained(state, 1)  # training continues
    while len(door.requests) < 8:  # more than a single call makes
        assert writer.committed() is None
    door.is_shut = False
    assert writer.committed(wait=True)
    writer.close()
    load_checkpoint(restored := toy_state(), checkpoint_at(uri, 1))
    assert_equal(restored, twin)


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_older_checkpoints_stand(tmp_path):
    """On a real file system of 9 MB that only one process sees; a checkpoint of the toy has more than 100 kB."""
    script = f"mount -t tmpfs -o size=9m tmpfs {tmp_path} && exec {sys.executable} {__file__} {tmp_path}"
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    if not shutil.which("unshare") or subprocess.run([*command[:4], "true"], capture_output=True).returncode:
        pytest.skip("mounting a file system is not allowed here")
    found = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ":".join(sys.path)})
    told = found.stdout.splitlines()
    assert [line.partition(" ")[0] for line in told] == ["destination:", "temporary:"], found.stderr
    for line in told:
        assert ": the checkpoint of step 2 was not saved, older ones stand: " in line
        assert line.endswith("no space is left on the device; free some or write elsewhere; 1 ['step-00000001']")


def _fill_both(small: str) -> None:
    """Fill the small file system as the destination, empty it, and fill it as the temporary folder."""
    _fill("destination", small, f"{small}/checkpoints", None)
    shutil.rmtree(f"{small}/checkpoints")
    _fill("temporary", small, f"{small}-beside", small)


def _fill(name: str, small: str, folder: str, temporary: str | None) -> None:
    """Save until the small file system is full; print the sentence, the newest checkpoint, and what is there."""
    tempfile.tempdir = temporary
    save_checkpoint(state := trained(toy_state(), 1), folder, {})
    other = Path(small, ".other")
    other.write_bytes(bytes(shutil.disk_usage(small).free - 100_000))
    try:
        save_checkpoint(trained(state, 1), folder, {})
    except storage.StorageError as error:
        found = newest_checkpoint(folder)
        print(f"{name}: {error}; {found and found.step} {[path.name for path in Path(folder).glob('step*')]}")
    other.unlink()


def test_a_store_that_stays_away_is_one_sentence_and_older_checkpoints_stand(door, s3, tmp_path):
    uri, state = _checkpoints(s3, tmp_path), toy_state()
    save_checkpoint(state, uri, {})
    state.step, writer = 7, CheckpointWriter(uri, {}, patience_seconds=0.2)
    door.is_shut = True
    writer.start(*checkpoint_parts(state))
    with pytest.raises(storage.StorageError, match="step 7 was not saved, older ones stand: .* cannot be reached"):
        writer.committed(wait=True)
    door.is_shut = False
    found = newest_checkpoint(uri)
    assert found and found.step == 0
    writer.start(*checkpoint_parts(state))
    assert writer.committed(wait=True)
    writer.close()


@pytest.mark.parametrize("line", [b"DELETE", b"__0_0.distcp", b".metadata", b"manifest.json"])
def test_a_store_that_answers_503_is_asked_again(door, s3, tmp_path, line):
    door.refused += [line] * 4
    writer = CheckpointWriter(uri := _checkpoints(s3, tmp_path), {}, patience_seconds=60)
    writer.start(*checkpoint_parts(toy_state()))
    assert writer.committed(wait=True) and not door.refused
    assert newest_checkpoint(uri)
    writer.close()


def test_training_goes_on_while_a_store_is_slow(door, s3, tmp_path):
    writer, state = CheckpointWriter(_checkpoints(s3, tmp_path), {}), toy_state()
    door.passes.clear()
    writer.start(*checkpoint_parts(state))
    for _ in range(3):
        trained(state, 1)
        assert writer.committed() is None
    door.passes.set()
    assert (found := writer.committed(wait=True)) and found[0].step == 0
    writer.close()


if __name__ == "__main__":
    _fill_both(sys.argv[1])
