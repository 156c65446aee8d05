"""Real pretraining runs on Ray Train: lost workers, lost drivers, other numbers of workers, bad rows."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import ray
import ray._private.state
import torch
from toy_run import NOTED_STEPS, held, metrics_of_run, noted_run, numbers_of_run, tiny_run, write_scenes

from tips_ray.config import RunConfig
from tips_ray.data.index import run_order
from tips_ray.data.index_folder import index_of
from tips_ray.errors import Faults, RunFailedError, RunStopped
from tips_ray.launch import pretrain
from tips_ray.launch.cluster import resources_suffice
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


def _until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def _reaches(folder: RunFolder, step: int, saved: int, resumes: int = 0) -> Callable[[], bool]:
    """Whether a step has been logged, one of at least `saved` has been saved, and so many resumes are over."""
    checkpoints = f"{folder.uri}/checkpoints"
    return lambda: (
        sum(kind == "resume" for kind, _ in _kinds(folder)) >= resumes
        and any(line["step"] >= step for line in folder.read_metrics())
        and any(found.step >= saved for found in list_checkpoints(checkpoints))
    )


def _workers() -> list[int]:
    """Processes of the training workers of this cluster."""
    actors = [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]
    return [actor["Pid"] for actor in actors if actor["ActorClassName"] == "RayTrainWorker"]


def test_an_undisturbed_run_says_what_it_did(undisturbed):
    start, *_ = undisturbed.read_events()
    assert start["kind"] == "start" and start["workers"] == 2
    assert start["machine"]["hosts"] == 1 and start["machine"]["accelerators"] == "none"
    assert set(start["versions"]) == {"python", "torch", "ray", "tips_ray"}
    assert _kinds(undisturbed) == [
        ("start", 0),
        *(("checkpoint", step) for step in range(4, NOTED_STEPS + 1, 4)),
        ("end", None),
    ]


def test_a_run_notes_what_its_steps_held_and_its_bad_row(undisturbed, on_ray):
    _assert_every_step_held_its_batch(undisturbed, on_ray, workers={0, 1})
    seen = [sample for line in undisturbed.read_samples() for sample in line["sample_ids"]]
    rejects = undisturbed.read_rejects()
    assert [row["sample_id"] for row in rejects] == [7] * seen.count(7)
    assert all(row["reason"].startswith("not an image") and "#7" in row["key"] for row in rejects)
    assert undisturbed.read_metrics()[-1]["data/bad_fraction"] == seen.count(7) / (8 * NOTED_STEPS)


class Eventful(NamedTuple):
    """A run that was disturbed and has ended, and what the driver that was told to stop left."""

    config: RunConfig
    folder: RunFolder
    told: str
    kinds: list[tuple[str, int | None]]
    last_step: int


@pytest.fixture(scope="module")
def eventful(cluster, data, tmp_path_factory) -> Eventful:
    """A run whose driver is killed, whose next driver loses a worker and is told to stop, and whose third ends it."""
    config = noted_run(tmp_path_factory.mktemp("eventful"), data)
    folder = RunFolder(f"{config.storage}/{config.name}")
    driver = _driver_of_its_own(config, {"RAY_ADDRESS": ray.get_runtime_context().gcs_address})
    _until(_reaches(folder, 5, saved=4))
    driver.kill()
    assert driver.wait() == -signal.SIGKILL

    def disturb() -> None:
        _until(_reaches(folder, 9, saved=8, resumes=1))
        os.kill(max(_workers()), signal.SIGKILL)
        _until(_reaches(folder, 9, saved=8, resumes=2))
        with held(config, *_workers()):
            os.kill(os.getpid(), signal.SIGTERM)
            _until((Path(folder.uri) / "stop.json").exists)

    disturber = threading.Thread(target=disturb, daemon=True)
    disturber.start()
    with pytest.raises(RunStopped) as stopped:
        pretrain(config)
    disturber.join()
    left = Eventful(config, folder, str(stopped.value), _kinds(folder), folder.read_metrics()[-1]["step"])
    pretrain(config)
    return left


def _driver_of_its_own(config: RunConfig, variables: dict[str, str]) -> subprocess.Popen:
    code = (
        "import sys; from tips_ray.config import RunConfig; from tips_ray.launch import pretrain; "
        "pretrain(RunConfig.model_validate_json(sys.argv[1]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | variables
    return subprocess.Popen([sys.executable, "-c", code, config.model_dump_json()], env=environment)


@pytest.mark.slow
def test_a_run_that_loses_its_driver_and_a_worker_and_is_stopped_has_the_same_numbers(eventful, undisturbed):
    _assert_same(eventful.folder, undisturbed, tolerance=0)
    _assert_every_step_held_its_batch(eventful.folder, eventful.config, workers={0, 1})
    assert eventful.folder.read_rejects() == undisturbed.read_rejects()


@pytest.mark.slow
def test_a_run_resumes_once_for_each_loss_and_each_start_from_what_was_saved_before(eventful):
    resumes = [event for event in eventful.folder.read_events() if event["kind"] == "resume"]
    after_the_driver, after_the_worker, after_the_stop = [event["step"] for event in resumes]
    assert after_the_driver in (4, 8) and after_the_worker in (8, 12) and after_the_stop == eventful.last_step
    assert [event["workers"] for event in resumes] == [2, 2, 2]


@pytest.mark.slow
def test_a_run_that_is_told_to_stop_saves_and_leaves(eventful):
    assert re.match(r"stopped by SIGTERM to process .*, which is saved; the same command resumes", eventful.told)
    last_resume = max(place for place, (kind, _) in enumerate(eventful.kinds) if kind == "resume")
    assert eventful.kinds[last_resume][1] < eventful.last_step < NOTED_STEPS and eventful.kinds[-1][0] == "end"
    assert "failure" not in dict(eventful.kinds[last_resume:])


@pytest.mark.variant
def test_a_run_whose_driver_is_killed_resumes_on_one_worker_within_rounding(undisturbed, data, tmp_path):
    config, folder = noted_run(tmp_path, data), RunFolder(f"{tmp_path}/tiny")
    driver = _driver_of_its_own(config, {})
    _until(_reaches(folder, 5, saved=4))
    driver.kill()
    assert driver.wait() == -signal.SIGKILL
    alone = noted_run(tmp_path, data, resources__workers=1)
    pretrain(alone)
    _assert_same(folder, undisturbed, tolerance=1e-5)
    _assert_every_step_held_its_batch(folder, alone, workers={0, 1})
    assert [event["workers"] for event in folder.read_events() if event["kind"] == "resume"] == [1]


def test_a_run_that_the_joined_ray_has_no_room_for_is_refused(cluster, tmp_path):
    with pytest.raises(Faults, match=r"need 7 CPUs, the Ray that this process has joined offers 6: lower them"):
        resources_suffice(tiny_run(tmp_path, "a", resources__workers=4, resources__data_cpus=3))


@pytest.mark.variant
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
