"""Runs on a cluster whose nodes are added, drained and killed during training."""

import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from nodes import Node, Nodes, events, nodes_of_cluster, running, wait_for_step, wait_until
from toy_run import WINDOWED, metrics_of_run, tiny_run, write_scenes

from jobs.pretrain import start_command
from tips_ray.config import RunConfig
from tips_ray.data.index import run_order
from tips_ray.data.index_folder import index_of
from tips_ray.launch import pretrain
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.folder import RunFolder

pytestmark = pytest.mark.ray
STEPS = 30  # over which fp32 on other numbers of workers stays within TOLERANCE
TOLERANCE = 1e-5
TRAIN, DATA = {"train": 1.0}, {"data": 1.0}
PACE = {"roles": True, "min_workers": 1, "resize_seconds": 1, "poll_seconds": 0.5, "placement_seconds": 5}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_scenes(tmp_path_factory.mktemp("elastic") / "scenes", 40)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> RunFolder:
    """The same run in one process."""
    config = _run(tmp_path_factory.mktemp("undisturbed"), data)
    uri = pretrain(config, RankTrainer())
    assert uri
    return RunFolder(uri)


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Nodes]:
    with nodes_of_cluster(monkeypatch) as nodes:
        yield nodes


def _run(storage: Path, data: str, **values: Any) -> RunConfig:
    sizes = {"global_batch_images": 64, "schedule__total_steps": STEPS, "checkpoint_every_steps": 10}
    # Steps of 0.15 s on a fast machine: a run of 0.04 s a step may end before it hears of a node.
    sizes |= {"image__depth": 4, "image__image_size_px": 112, "views__global_px": 112, "views__local_px": 56}
    pace = {f"resources__{key}": value for key, value in PACE.items()}
    return tiny_run(storage, data, **{**sizes, **pace, "micro_batch_images": 32, "data__log_samples": True, **values})


def _nodes_of_two(nodes: Nodes) -> Node:
    """Nodes for the data stream and for two workers; returns the last worker's, which may be removed."""
    nodes.add(1, DATA)
    nodes.add(1, TRAIN)
    return nodes.add(1, TRAIN)


def _assert_same(folder: RunFolder, config: RunConfig, undisturbed: RunFolder) -> None:
    """Every step had its batch, on any workers, and the same losses."""
    index = index_of(config.data, f"{config.storage}/index")
    order = run_order(index, config.data, config.seed, config.global_batch_images)
    lines = folder.read_samples()
    for step in range(STEPS):
        found = sorted(place for line in lines if line["step"] == step for place in line["positions"])
        assert found == order.batch(step).position_N.tolist()
    assert [line["step"] for line in folder.read_metrics()] == list(range(1, STEPS + 1))
    for line, its in zip(metrics_of_run(folder), metrics_of_run(undisturbed), strict=True):
        assert line == pytest.approx(its, rel=TOLERANCE, abs=1e-7)
    for line, its in zip(folder.read_metrics(), undisturbed.read_metrics(), strict=True):
        for name in {*WINDOWED} & line.keys() & its.keys():  # the same steps are in both windows
            assert line[name] == pytest.approx(its[name], rel=TOLERANCE, abs=1e-4)


def _changes(folder: RunFolder) -> list[tuple[int, int]]:
    return [(event["from"], event["to"]) for event in events(folder, "change")]


@pytest.fixture(scope="module", params=["split", "shared"])
def eventful(request, data, tmp_path_factory) -> RunConfig:
    """A run that waits for its first node, gains a second, loses it, has the first drained, waits, and gets a third."""
    storage = tmp_path_factory.mktemp(f"eventful-{request.param}")
    config = _run(storage, data, checkpoint_every_steps=5, resources__stream=request.param)
    folder = _folder(config)
    with pytest.MonkeyPatch.context() as patch, nodes_of_cluster(patch) as nodes, running(config) as run:
        nodes.add(1, DATA)
        wait_until(lambda: bool(events(folder, "waiting")), run)
        first = nodes.add(1, TRAIN)
        wait_for_step(folder, 2, run)
        second = nodes.add(1, TRAIN)
        wait_until(lambda: len(_changes(folder)) == 1, run)
        wait_for_step(folder, 7, run)
        nodes.kill(second)
        wait_until(lambda: len(_changes(folder)) == 2, run)
        nodes.drain(first, seconds=600)  # that the run stops before it, shows that nobody waits for it
        wait_until(lambda: len(events(folder, "waiting")) == 2, run)
        nodes.kill(first)
        nodes.add(1, TRAIN)
        run.result()
    return config


def _folder(config: RunConfig) -> RunFolder:
    return RunFolder(f"{config.storage}/{config.name}")


@pytest.mark.slow
def test_an_eventful_run_has_the_batches_and_losses_of_an_undisturbed_one(eventful, undisturbed):
    assert _changes(_folder(eventful)) == [(1, 2), (2, 1), (1, 1)]
    _assert_same(_folder(eventful), eventful, undisturbed)


@pytest.mark.slow
def test_a_run_waits_while_there_is_no_room_for_its_fewest_workers(eventful):
    assert [(told["room"], told["min_workers"]) for told in events(_folder(eventful), "waiting")] == [(0, 1)] * 2


@pytest.mark.slow
def test_no_step_is_done_twice_when_a_node_comes_or_is_drained(eventful):
    grown, lost, drained = events(_folder(eventful), "change")
    failures = [failure["time"] for failure in events(_folder(eventful), "failure")]
    assert all(grown["time"] < time < lost["time"] for time in failures)
    assert (grown["steps_recomputed"], drained["steps_recomputed"]) == (0, 0)
    assert grown["cause"] == "room for 2 workers instead of 1" and drained["cause"].startswith("drain: ")


@pytest.mark.slow
def test_a_run_that_loses_a_node_goes_on_with_what_is_left(eventful):
    _, lost, _ = events(_folder(eventful), "change")
    assert lost["cause"].startswith("lost: ") and 0 < lost["step"] and lost["steps_recomputed"] <= 10
    assert sum(lost["seconds"].values()) == pytest.approx(lost["seconds_lost"], abs=0.01)


@pytest.mark.variant
@pytest.mark.parametrize("stream", ["split", "shared"])
def test_no_step_is_done_twice_when_a_node_comes_and_is_drained_beside_another(
    nodes, data, undisturbed, tmp_path, stream
):
    config, folder = _run(tmp_path, data, resources__stream=stream), RunFolder(f"{tmp_path}/tiny")
    nodes.add(1, DATA)
    with running(config) as run:
        wait_until(lambda: bool(events(folder, "waiting")), run)
        nodes.add(1, TRAIN)
        wait_for_step(folder, 2, run)
        leaving = nodes.add(1, TRAIN)
        wait_until(lambda: len(_changes(folder)) == 1, run)
        nodes.drain(leaving, seconds=600)  # that the run goes on before it, shows that nobody waits for it
        wait_until(lambda: len(_changes(folder)) == 2, run)
        nodes.kill(leaving)
        run.result()
    waiting, changes = events(folder, "waiting")[0], events(folder, "change")
    assert (waiting["room"], waiting["min_workers"]) == (0, 1)
    assert _changes(folder) == [(1, 2), (2, 1)] and [change["steps_recomputed"] for change in changes] == [0, 0]
    assert changes[0]["cause"] == "room for 2 workers instead of 1" and changes[1]["cause"].startswith("drain: ")
    assert not events(folder, "failure")
    _assert_same(folder, config, undisturbed)


@pytest.mark.variant
def test_a_run_that_falls_below_its_fewest_waits_and_goes_on_with_the_next_node(nodes, data, undisturbed, tmp_path):
    config = _run(tmp_path, data, checkpoint_every_steps=5, resources__min_workers=2)
    folder = RunFolder(f"{tmp_path}/tiny")
    lost = _nodes_of_two(nodes)
    with running(config) as run:
        wait_for_step(folder, 7, run)
        nodes.kill(lost)
        wait_until(lambda: bool(events(folder, "waiting")), run)
        nodes.add(1, TRAIN)
        run.result()
    waiting = events(folder, "waiting")[0]
    assert (waiting["room"], waiting["min_workers"]) == (1, 2) and _changes(folder) == [(2, 2)]
    assert events(folder, "change")[0]["steps_recomputed"] <= 10
    _assert_same(folder, config, undisturbed)


@pytest.mark.slow
def test_ctrl_c_ends_a_run_that_waits_for_nodes(nodes, data, tmp_path):
    config, folder = _run(tmp_path, data), RunFolder(f"{tmp_path}/tiny")
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    driver = subprocess.Popen(start_command([str(tmp_path / "run.yaml")]), stderr=subprocess.PIPE, text=True)
    while not events(folder, "waiting"):
        assert driver.poll() is None
        time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=60)
    assert driver.returncode == 130 and "interrupted at step 0; the same command starts again" in told
