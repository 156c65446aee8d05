"""Sweeps on Ray Tune: the numbers of trials, and what a lost trial, a request to stop and a killed driver leave."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from captioning.tiny import write_paligemma
from toy_captions import caption_inputs, captioned_run, objects
from toy_run import metrics_of_run, write_scenes
from toy_sweep import tiny_sweep

from tips_ray.captioning.stream import due_chunks
from tips_ray.config.sweep import SweepConfig
from tips_ray.launch import pretrain
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import newest
from tips_ray.runs.mlflow_access import mlflow_client
from tips_ray.runs.mlflow_note import stored_run_id
from tips_ray.runs.run import run_at
from tuning.sweeps.executor import run_on_tune, slots_of
from tuning.sweeps.queue import trial_name
from tuning.sweeps.record import Record
from tuning.sweeps.run import run_sweep
from tuning.sweeps.space import run_of

ROOT = Path(__file__).parents[2]
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_scenes(tmp_path_factory.mktemp("sweeps") / "scenes", 16)


def _sweep(root: Path, data: str, steps: int) -> SweepConfig:
    """Three settings, of which one trains to the end."""
    sizes = {"run__schedule__total_steps": steps, "rungs": [steps // 2], "settings": 3, "at_a_time": 2, "keep": 3}
    return tiny_sweep(root, data, **sizes, run__checkpoint_every_steps=10_000)


def _wait(is_so: Callable[[], object]) -> None:
    ends = time.monotonic() + 200
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.05)


def _scores(uri: str) -> int:
    return sum(len(trial.scores) for one in Record(uri).settings.values() for trial in one.trials.values())


def _trains(uri: str) -> bool:
    """A trial has logged a step of a rung that it has not reached."""
    for setting in Record(uri).settings.values():
        lines = RunFolder(f"{uri}/runs/{trial_name(setting.number, 0)}").read_metrics()
        if lines and lines[-1]["step"] > max(setting.trial(0).scores, default=0) + 1:
            return True
    return False


def _holders(uri: str) -> list[int]:
    """Processes that train trials now."""
    found = [newest(f"{uri}/runs/{trial_name(number, 0)}")[1] for number in Record(uri).settings]
    return [holder.process for holder in found if holder and not holder.is_gone]


def _assert_whole(config: SweepConfig, uri: str, elsewhere: Path) -> None:
    """Each trial has the numbers of the same run, trained at once by itself."""
    settings = Record(uri).settings
    assert [sorted(one.trial(0).scores) for one in settings.values()].count([*config.rungs]) == 2
    vocabulary = {"captions.tokenizer": f"{uri}/tokenizer.json", "storage": str(elsewhere)}
    for setting in settings.values():
        name, reached = trial_name(setting.number, 0), max(setting.trial(0).scores)
        alone = run_of(config, {**setting.values, **vocabulary}, name)
        whole = metrics_of_run(RunFolder(pretrain(alone, RankTrainer(), until_step=reached)))
        assert [line["step"] for line in whole] == list(range(1, reached + 1))
        assert metrics_of_run(RunFolder(f"{uri}/runs/{name}")) == whole


def test_a_lost_trial_is_trained_on_and_all_numbers_are_those_of_runs_by_themselves(cluster, data, tmp_path):
    config, uri, killed = _sweep(tmp_path, data, 40), f"{tmp_path}/tiny", list[int]()

    def tell(line: str) -> None:
        if ": loss/" in line and not killed:  # the first score: another trial trains, or starts to
            _wait(lambda: _holders(uri))
            killed.extend(_holders(uri)[:1])
            os.kill(killed[0], signal.SIGKILL)

    sweep = run_sweep(config, run_on_tune, tell)
    failures = [line for line in _events(uri) if line["kind"] == "failure"]
    assert [line["why"] for line in failures] == ["its process was lost"] and not sweep.running
    _assert_whole(config, uri, tmp_path / "alone")


def test_the_tune_actor_of_a_run_with_workers_takes_no_part_of_a_cpu(cluster):
    """Where runs fit exactly, their data streams would wait for that part for ever."""
    slots = slots_of(run_of(tiny_sweep("a", run__resources__workers=4), {}), None)
    assert slots.at_a_time == 1 and slots.need and not slots.need.keys() & {"CPU", "GPU"}


def _events(uri: str) -> list[dict]:
    lines = [line for path in sorted(Path(uri, "record").iterdir()) for line in path.read_text().splitlines()]
    return [yaml.safe_load(line) for line in lines]


def test_a_sweep_that_was_stopped_and_then_killed_goes_on_to_the_same_end(data, tmp_path, capsys):
    config, uri = _sweep(tmp_path, data, 120), f"{tmp_path}/tiny"
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    first = _started(tmp_path)
    _wait(lambda: _trains(uri))
    first.send_signal(signal.SIGUSR1)  # for which Tune has a handler of its own
    said, _ = first.communicate(timeout=120)
    assert first.returncode == 75 and "the same command goes on with the sweep" in said
    assert not _holders(uri) and {run.info.status for run in _children(config, uri)} <= {"KILLED", "SCHEDULED"}
    second = _started(tmp_path)
    _wait(lambda: _scores(uri) and _trains(uri))
    second.kill()
    second.wait()
    third = _started(tmp_path)
    said, _ = third.communicate(timeout=300)
    assert third.returncode == 0 and "best: setting" in said, said
    _assert_whole(config, uri, tmp_path / "alone")
    children = _children(config, uri)
    assert sorted(run.info.status for run in children) == ["FINISHED", "SCHEDULED", "SCHEDULED"]
    parents = {run.data.tags["mlflow.parentRunId"] for run in children}
    assert parents == {stored_run_id(uri)}, "one parent over all starts"


def test_live_captions_are_made_once_before_the_trials_and_only_what_these_read(cluster, tmp_path):
    run = captioned_run(tmp_path, write_paligemma(tmp_path / "paligemma"), rows=400)
    live = {"run__captions": run.captions.model_dump(mode="json"), "run__data__max_bad_fraction": 0.5}
    sizes = {"run__schedule__total_steps": 2, "rungs": [1], "settings": 2, "replicas": 2, "at_a_time": 1}
    config = tiny_sweep(tmp_path, run.data.sources[0].uri, **sizes, **live)
    index, inputs = caption_inputs(run)
    due = [due_chunks(index, run.model_copy(update={"seed": seed}), inputs.access.store, 16) for seed in (0, 1)]
    sweep = run_sweep(config, run_on_tune)
    read = {chunk for table in due for chunk in table["chunk"].to_pylist()}
    assert len(objects(inputs.access.store)) == len(read) < len(index.chunks.rows) / 2
    folders = [RunFolder(f"{sweep.places.runs}/{trial_name(number, seed)}") for number in (0, 1) for seed in (0, 1)]
    assert {run_at(folder.uri).config.captions.source for folder in folders} == {"store"}
    assert [folder.read_metrics()[-1]["step"] for folder in folders].count(2) == 2


def _started(root: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "jobs.cli", "sweep", str(root / "sweep.yaml")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "RAY_ADDRESS": ""}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment, start_new_session=True, **streams)


def _children(config: SweepConfig, uri: str) -> list:
    client = mlflow_client(run_of(config, {}).tracking.mlflow_uri)
    ids = [stored_run_id(f"{uri}/runs/{trial_name(number, 0)}") for number in Record(uri).settings]
    return [client.get_run(run_id) for run_id in ids if run_id]
