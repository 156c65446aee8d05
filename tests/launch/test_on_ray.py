"""Real pretraining runs on Ray Train: lost workers, lost drivers, other numbers of workers, bad rows."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import ray
import ray._private.state
import torch
from toy_run import NOTED_STEPS, metrics_of_run, noted_run, numbers_of_run, write_scenes

from tips_ray.config import RunConfig
from tips_ray.data.index import run_order
from tips_ray.data.index_folder import index_of
from tips_ray.errors import RunFailedError, RunStopped
from tips_ray.launch import pretrain
from tips_ray.runs.checkpoint import list_checkpoints
from tips_ray.runs.folder import RunFolder

pytestmark = pytest.mark.ray


@pytest.fixture
def undisturbed(on_ray) -> RunFolder:
    return RunFolder(f"{on_ray.storage}/{on_ray.name}")


def _numbers(folder: RunFolder) -> dict[str, torch.Tensor]:
    return numbers_of_run(folder, noted_run(Path("unused"), "unused"))


def _kinds(folder: RunFolder) -> list[tuple[str, int | None]]:
    return [(event["kind"], event["step"]) for event in folder.read_events()]


def _without_key_bias(numbers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Zero the bias of the keys, which cancels in the softmax: AdamW makes whole steps of its rounded gradient."""
    for name, value in numbers.items():
        if name.endswith("qkv.bias"):
            value.chunk(3)[1].zero_()
    return numbers


def _assert_same(folder: RunFolder, other: RunFolder, tolerance: float) -> None:
    found, expected = _numbers(folder), _numbers(other)
    if tolerance:
        found, expected = _without_key_bias(found), _without_key_bias(expected)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert [line["step"] for line in folder.read_metrics()] == list(range(1, NOTED_STEPS + 1))
    for line, its in zip(metrics_of_run(folder), metrics_of_run(other), strict=True):
        assert line == pytest.approx(its, rel=tolerance, abs=0)


def _assert_every_step_held_its_batch(folder: RunFolder, config: RunConfig, workers: set[int]) -> None:
    index = index_of(config.data, f"{config.storage}/index")
    order = run_order(index, config.data, config.seed, config.global_batch_images)
    lines = folder.read_samples()
    for step in range(NOTED_STEPS):
        batch, own = order.batch(step), [line for line in lines if line["step"] == step]
        found = sorted(pair for line in own for pair in zip(line["positions"], line["sample_ids"], strict=True))
        assert found == list(zip(batch.position_N.tolist(), batch.sample_id_N.tolist(), strict=True))
    assert {line["rank"] for line in lines} == workers


def _when(folder: RunFolder, step: int, action: Any) -> threading.Thread:
    """Call `action` as soon as a step of a run has been logged and a checkpoint is there."""

    def wait() -> None:
        while not any(line["step"] >= step for line in folder.read_metrics()) or not _is_saved(folder):
            time.sleep(0.02)
        action()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


def _is_saved(folder: RunFolder) -> bool:
    return bool(list_checkpoints(f"{folder.uri}/checkpoints"))


def _kill_a_worker() -> None:
    """SIGKILL to one training worker of this cluster."""
    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    os.kill(max(actor["Pid"] for actor in actors if actor["ActorClassName"] == "RayTrainWorker"), signal.SIGKILL)


def test_an_undisturbed_run_says_what_it_did(undisturbed):
    start, *_ = undisturbed.read_events()
    assert start["kind"] == "start" and start["workers"] == 2
    assert start["machine"]["hosts"] == 1 and start["machine"]["accelerators"] == "none"
    assert set(start["versions"]) == {"python", "torch", "ray", "tips_ray"}
    assert _kinds(undisturbed) == [("start", 0), *(("checkpoint", step) for step in (4, 8, 12, 16)), ("end", None)]


def test_a_run_notes_what_its_steps_held_and_its_bad_row(undisturbed, on_ray):
    _assert_every_step_held_its_batch(undisturbed, on_ray, workers={0, 1})
    seen = [sample for line in undisturbed.read_samples() for sample in line["sample_ids"]]
    rejects = undisturbed.read_rejects()
    assert [row["sample_id"] for row in rejects] == [7] * seen.count(7)
    assert all(row["reason"].startswith("not an image") and "#7" in row["key"] for row in rejects)
    assert undisturbed.read_metrics()[-1]["data/bad_fraction"] == seen.count(7) / (8 * NOTED_STEPS)


@pytest.mark.slow
def test_a_run_that_loses_a_worker_ends_with_the_same_numbers(undisturbed, data, tmp_path):
    config = noted_run(tmp_path, data)
    folder = RunFolder(f"{tmp_path}/tiny")
    killer = _when(folder, 6, _kill_a_worker)
    pretrain(config)
    killer.join()
    _assert_same(folder, undisturbed, tolerance=0)
    _assert_every_step_held_its_batch(folder, config, workers={0, 1})
    resumed = [step for kind, step in _kinds(folder) if kind == "resume"]
    assert len(resumed) == 1 and resumed[0] in (4, 8)
    assert folder.read_rejects() == undisturbed.read_rejects()


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_goes_on_with_the_same_numbers(undisturbed, data, tmp_path):
    config, folder = noted_run(tmp_path, data), RunFolder(f"{tmp_path}/tiny")
    scheduler = _when(folder, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(
        RunStopped, match=r"^stopped by SIGTERM to process .*, which is saved; the same command resumes"
    ):
        pretrain(config)
    scheduler.join()
    assert _kinds(folder)[-1][0] == "end" and "failure" not in dict(_kinds(folder))
    assert 5 <= folder.read_metrics()[-1]["step"] < NOTED_STEPS
    pretrain(config)
    _assert_same(folder, undisturbed, tolerance=0)
    _assert_every_step_held_its_batch(folder, config, workers={0, 1})


@pytest.mark.slow
def test_a_run_whose_driver_is_killed_resumes_on_one_worker_within_rounding(undisturbed, data, tmp_path):
    config, folder = noted_run(tmp_path, data), RunFolder(f"{tmp_path}/tiny")
    code = (
        "import sys; from tips_ray.config import RunConfig; from tips_ray.launch import pretrain; "
        "pretrain(RunConfig.model_validate_json(sys.argv[1]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    driver = subprocess.Popen([sys.executable, "-c", code, config.model_dump_json()], env=environment)
    _when(folder, 5, driver.kill).join()
    assert driver.wait() == -signal.SIGKILL
    alone = noted_run(tmp_path, data, resources__workers=1)
    pretrain(alone)
    _assert_same(folder, undisturbed, tolerance=1e-5)
    _assert_every_step_held_its_batch(folder, alone, workers={0, 1})
    assert [event["workers"] for event in folder.read_events() if event["kind"] == "resume"] == [1]


@pytest.mark.slow
def test_too_many_bad_rows_stop_a_run_at_once_with_a_sentence(cluster, tmp_path):
    bad = {number: {"image": b""} for number in range(0, 40, 4)} | {
        number: {"caption": ""} for number in range(1, 40, 8)
    }
    data = write_scenes(tmp_path / "scenes", 40, bad)
    config = noted_run(tmp_path, data, data__max_bad_fraction=0.2)
    with pytest.raises(RunFailedError) as error:
        pretrain(config)
    folder = RunFolder(f"{tmp_path}/tiny")
    last = folder.read_metrics()[-1]
    rows, rejects = last["step"] * 8, folder.read_rejects()
    assert len(rejects) > 0.2 * 8 * NOTED_STEPS >= len(rejects) - 8  # 20 % of what the run has, passed in the last step
    assert last["data/bad_fraction"] == pytest.approx(len(rejects) / rows)
    empty = sum(row["reason"] == "the image has no bytes" for row in rejects)
    example = next(row["key"] for row in rejects if row["reason"] == "the image has no bytes")
    assert f"{len(rejects)} of {rows} rows up to step {last['step']} are bad" in str(error.value)
    assert f"commonest reasons: the image has no bytes ({empty}, e.g. {example}), no caption (" in str(error.value)
    assert f"{folder.uri}/rejects" in str(error.value) and "data.max_bad_fraction (0.2)" in str(error.value)
    kinds = [kind for kind, _ in _kinds(folder) if kind != "checkpoint"]
    assert kinds == ["start", "failure", "end"]  # not tried again
