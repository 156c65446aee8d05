"""Runs without Ray, as a user starts them: killed, interrupted, resumed, on one process and on two ranks."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml
from toy_run import NOTED_STEPS, held, metrics_of_run, noted_run, numbers_of_run, write_scenes

from jobs.cli import main
from tips_ray.config import RunConfig
from tips_ray.launch import pretrain
from tips_ray.runs.checkpoint import list_checkpoints
from tips_ray.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> Callable[[int], RunFolder]:
    """Makes the run on a number of ranks when it is first asked for."""
    return cache(lambda ranks: _finished(noted_run(tmp_path_factory.mktemp("undisturbed"), data), ranks))


def _started(config: RunConfig, ranks: int) -> subprocess.Popen:
    """`tips-ray pretrain --without-ray`, below torchrun for several ranks."""
    path = Path(config.storage) / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m"]
    command = [sys.executable, "-m", *(torchrun if ranks > 1 else []), "jobs.cli", "pretrain", str(path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "start_new_session": True}
    return subprocess.Popen([*command, "--without-ray"], env=environment, **streams)


def _finished(config: RunConfig, ranks: int) -> RunFolder:
    process = _started(config, ranks)
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return RunFolder(f"{config.storage}/{config.name}")


def _wait_for_step(config: RunConfig, step: int, resumes: int = 0) -> None:
    """Until a step has been logged after so many resumes, and a checkpoint is there."""
    folder, ends = RunFolder(f"{config.storage}/{config.name}"), time.monotonic() + 300
    while not (_resumes(folder) >= resumes and _has_logged(folder, step) and _is_saved(folder)):
        assert time.monotonic() < ends
        time.sleep(0.02)


def _has_logged(folder: RunFolder, step: int) -> bool:
    return any(line["step"] >= step for line in folder.read_metrics())


def _resumes(folder: RunFolder) -> int:
    return sum(event["kind"] == "resume" for event in folder.read_events())


def _is_saved(folder: RunFolder) -> bool:
    return bool(list_checkpoints(f"{folder.uri}/checkpoints"))


def _rank(torchrun: int, rank: int) -> int:
    """Process id of a rank below torchrun."""
    children = Path(f"/proc/{torchrun}/task/{torchrun}/children").read_text().split()
    (found,) = [int(pid) for pid in children if f"RANK={rank}" in Path(f"/proc/{pid}/environ").read_text().split("\0")]
    return found


def _numbers(folder: RunFolder) -> dict[str, torch.Tensor]:
    return numbers_of_run(folder, noted_run(Path("unused"), "unused"))


def _assert_same(folder: RunFolder, other: RunFolder) -> None:
    torch.testing.assert_close(_numbers(folder), _numbers(other), rtol=0, atol=0)
    metrics = [metrics_of_run(one) for one in (folder, other)]
    assert metrics[0] == metrics[1] and [line["step"] for line in metrics[0]] == list(range(1, NOTED_STEPS + 1))
    assert folder.read_samples() == other.read_samples() and _rejects(folder) == _rejects(other)


def _rejects(folder: RunFolder) -> list[dict]:
    """Bad rows; a key made of a place is cut to its last part, for a run may have moved."""
    return [{**row, "key": Path(row["key"]).name} for row in folder.read_rejects()]


@pytest.mark.variant
def test_a_killed_run_of_one_process_resumes_and_ends_with_the_same_numbers(undisturbed, data, tmp_path):
    config = noted_run(tmp_path, data)
    process = _started(config, 1)
    _wait_for_step(config, 6)
    process.kill()
    assert process.wait(120) == -signal.SIGKILL
    folder = _finished(config, 1)
    _assert_same(folder, undisturbed(1))
    assert [event["workers"] for event in folder.read_events() if event["kind"] == "resume"] == [1]


@pytest.mark.ray
@pytest.mark.slow
def test_a_run_on_ray_has_the_same_numbers(on_ray, undisturbed):
    _assert_same(RunFolder(f"{on_ray.storage}/tiny"), undisturbed(2))


@pytest.mark.ray
@pytest.mark.variant
def test_each_road_takes_up_a_run_of_the_other(on_ray, undisturbed):
    folder = RunFolder(f"{on_ray.storage}/tiny")
    for go_on in (lambda: _finished(on_ray, 2), lambda: pretrain(on_ray)):
        shutil.rmtree(f"{folder.uri}/checkpoints/step-{NOTED_STEPS:08d}")
        go_on()
        _assert_same(folder, undisturbed(2))
    assert [event["step"] for event in folder.read_events() if event["kind"] == "resume"] == [NOTED_STEPS - 4] * 2


@pytest.mark.slow
def test_ctrl_c_ends_a_run_with_130_and_says_how_to_go_on(data, tmp_path):
    config = noted_run(tmp_path, data, schedule__total_steps=100_000)
    process = _started(config, 1)
    _wait_for_step(config, 5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted at step" in errors.splitlines()[0] and "the same command" in errors.splitlines()[0]
    assert [event["status"] for event in RunFolder(f"{tmp_path}/tiny").read_events() if event["kind"] == "end"] == [
        "KILLED"
    ]


@pytest.mark.slow
def test_sigterm_saves_and_ends_a_run_with_75(data, tmp_path):
    config = noted_run(tmp_path, data, schedule__total_steps=100_000)
    process, folder = _started(config, 1), RunFolder(f"{tmp_path}/tiny")
    _wait_for_step(config, 5)
    os.killpg(process.pid, signal.SIGTERM)  # as SLURM does, to all processes of the job
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 75, errors
    told = errors.splitlines()
    assert "SIGTERM to process" in told[0] and "the run saves and leaves" in told[0], errors
    step = folder.read_metrics()[-1]["step"]
    assert f"at step {step}, which is saved; the same command resumes from step {step}" in told[-1], errors
    assert folder.read_events()[-1]["status"] == "KILLED" and "SIGTERM" in folder.read_events()[-1]["cause"]


@pytest.mark.slow
def test_a_run_that_loses_a_rank_is_stopped_and_moves_goes_on_with_the_same_numbers(
    undisturbed, data, tmp_path, capsys
):
    config, folder = noted_run(tmp_path, data), RunFolder(f"{tmp_path}/tiny")
    process = _started(config, 2)
    _wait_for_step(config, 6)
    os.kill(_rank(process.pid, 1), signal.SIGKILL)
    process.communicate(timeout=120)
    assert process.returncode != 0
    process = _started(config, 2)
    _wait_for_step(config, 11, resumes=1)
    with held(config, _rank(process.pid, 0)):
        assert main(["pretrain", str(tmp_path / "run.yaml"), "--without-ray"]) == 3
        assert "is being trained by process" in capsys.readouterr().err
        assert main(["runs", "stop", folder.uri]) == 0
    process.communicate(timeout=120)
    assert process.returncode != 0 and folder.read_metrics()[-1]["step"] < NOTED_STEPS
    shutil.copytree(data, moved_data := str(tmp_path / "data"), copy_function=shutil.copy)
    (moved := tmp_path / "moved").mkdir()
    shutil.move(folder.uri, moved)
    folder = _finished(noted_run(moved, moved_data), 2)
    _assert_same(folder, undisturbed(2))
    events = folder.read_events()
    assert [event["workers"] for event in events if event["kind"] == "resume"] == [2, 2]
    (changes,) = [event["changes"] for event in events if event["kind"] == "config"]
    assert changes.keys() == {"storage", "data.sources.0.uri"}
    resumed = next(place for place, event in enumerate(events) if event["kind"] == "resume")
    assert not [event for event in events[resumed:] if event["kind"] == "failure"]


@pytest.mark.slow
def test_ranks_hear_that_a_run_is_complete(undisturbed, data):
    config = noted_run(Path(undisturbed(2).uri).parent, data)
    events = undisturbed(2).read_events()
    assert _finished(config, 2).read_events() == events


@pytest.mark.slow
def test_too_many_bad_rows_end_all_ranks_with_one_sentence(tmp_path):
    bad = {number: {"image": b""} for number in range(0, 40, 2)}
    config = noted_run(tmp_path, write_scenes(tmp_path / "scenes", 40, bad), data__max_bad_fraction=0.2)
    process = _started(config, 2)
    _, errors = process.communicate(timeout=300)
    told = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert process.returncode != 0
    assert len(told) == 1 and "rows up to step" in told[0] and "are bad" in told[0]


def test_live_captions_are_refused_without_ray(data, tmp_path, capsys):
    captions = {"source": "live", "captioner": {"model": "google/paligemma-3b-mix-224"}}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(noted_run(tmp_path, data, captions=captions).model_dump(mode="json")))
    assert main(["pretrain", str(path), "--without-ray"]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "captions.source (live) needs Ray: run tips-ray caption" in told


def test_a_batch_that_the_ranks_cannot_share_is_refused(data, tmp_path, capsys, monkeypatch):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(noted_run(tmp_path, data).model_dump(mode="json")))
    for name, value in {"WORLD_SIZE": "3", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert main(["pretrain", str(path), "--without-ray"]) == 2
    assert "global_batch_images (8) must be divisible by resources.workers (3)" in capsys.readouterr().err
    assert main(["pretrain", str(path)]) == 2
    assert "add --without-ray" in capsys.readouterr().err


AS_A_LIBRARY = """
import importlib, pkgutil, shutil, sys
from pathlib import Path
from jobs.cli import main
from tips_ray.config import RunConfig, load_config
from tips_ray.launch import pretrain
from tips_ray.launch.on_ranks import RankTrainer

if __name__ == "__main__":
    path, no_ray = sys.argv[1:]
    config = load_config(RunConfig, Path(path))
    run = pretrain(config, RankTrainer())
    assert run == str(Path(path).parent / "tiny")

    shutil.copytree(run, Path(path).parent / "undamaged")
    shutil.rmtree(f"{run}/checkpoints/step-00000008")
    damaged = Path(f"{run}/checkpoints/step-00000006/__0_0.distcp")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"?")
    assert main(["pretrain", path, "--without-ray"]) == 0
    assert not Path(no_ray, "imported").exists()

    sys.path.remove(no_ray)
    import tips_ray.launch
    names = [found.name for found in pkgutil.iter_modules(tips_ray.launch.__path__)]
    for name in names:
        importlib.import_module(f"tips_ray.launch.{name}")
    from tips_ray.launch import pretrain
    assert pretrain(config, RankTrainer()) and len(names) > 10 and not set(names) & set(tips_ray.launch.__all__)
"""
"""Trains by a call of the library; damages the run and goes on by the command, both without Ray; then all modules of
`launch` are loaded, and the run is whole."""


class Short(NamedTuple):
    """A run of 8 steps that `AS_A_LIBRARY` began, damaged and ended, with Ray out of reach, and its log."""

    config: RunConfig
    log: str

    def folder(self, name: str) -> RunFolder:
        return RunFolder(f"{self.config.storage}/{name}")


@pytest.fixture(scope="module")
def short(data, tmp_path_factory) -> Short:
    place = tmp_path_factory.mktemp("short")
    config = noted_run(place, data, schedule__total_steps=8, checkpoint_every_steps=2, keep_last=4)
    (no_ray := place / "no_ray").mkdir()
    (no_ray / "ray.py").write_text(f"open({str(no_ray / 'imported')!r}, 'w'); raise ImportError('no Ray')")
    (place / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    (place / "library.py").write_text(AS_A_LIBRARY)
    variables = {"PYTHONPATH": f"{no_ray}:{ROOT}", "OMP_NUM_THREADS": "1", "TIPS_RAY_LOG_LEVEL": "info"}
    command = [sys.executable, str(place / "library.py"), str(place / "run.yaml"), str(no_ray)]
    done = subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return Short(config, done.stderr)


@pytest.mark.heavy
def test_pretrain_is_a_call_of_the_library_that_needs_no_ray(short):
    assert [line["step"] for line in short.folder("undamaged").read_metrics()] == list(range(1, 9))


@pytest.mark.heavy
def test_a_run_goes_on_from_the_checkpoint_before_one_whose_bytes_differ(short):
    folder, before = short.folder("tiny"), short.folder("undamaged")
    events = [event for event in folder.read_events() if event["kind"] in ("damaged", "resume")]
    assert [(event["kind"], event["step"], event.get("next")) for event in events] == [
        ("damaged", 6, 4),
        ("resume", 4, None),
    ]
    assert [line["step"] for line in folder.read_metrics()] == list(range(1, 9))
    found, expected = (numbers_of_run(one, short.config) for one in (folder, before))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.heavy
def test_the_log_tells_what_a_rank_does(short):
    in_order = (
        r"INFO rank 0 step 0 .* starts as one of 1 ranks on cpu; .*'torch': '\d",
        r"INFO rank 0 step 0 .* data begin at step 6, sample 48",
        r"WARNING rank 0 step 0 .* checkpoint .*step-00000006 cannot be loaded: the sha256 of __0_0.distcp differs",
        r"INFO rank 0 step 4 .* checkpoint loaded: .*step-00000004",
        r"INFO rank 0 step 6 .* checkpoint of step 6 begins",
        r"INFO rank 0 step 8 .* checkpoint saved: .*step-00000008, [\d.]+ s in the background, \d+ ms in training",
        r"INFO rank 0 step 8 .* all 8 steps are done",
    )
    rest = short.log
    for line in in_order:
        found = re.search(line, rest)
        assert found, (line, rest)
        rest = rest[found.end() :]


@pytest.mark.slow
def test_a_script_that_trains_outside_its_main_block_is_told_so(data, tmp_path):
    path, script = tmp_path / "run.yaml", tmp_path / "script.py"
    path.write_text(yaml.safe_dump(noted_run(tmp_path, data, schedule__total_steps=2).model_dump(mode="json")))
    script.write_text(f"""
from pathlib import Path
from tips_ray.config import RunConfig, load_config
from tips_ray.launch import pretrain
from tips_ray.launch.on_ranks import RankTrainer
pretrain(load_config(RunConfig, Path({str(path)!r})), RankTrainer())
""")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    found = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, timeout=300)
    assert found.returncode == 1 and found.stderr.startswith("error: a data process imports the script that called")
    kinds = [event["kind"] for event in RunFolder(f"{tmp_path}/tiny").read_events()]
    assert kinds == ["start", "failure", "end"]  # the data process did not train
