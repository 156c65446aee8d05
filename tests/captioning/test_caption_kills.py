"""Captioning as a job of its own: killed, and on a cluster that loses a node."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from nodes import Nodes, nodes_of_cluster
from processes import command_of, family
from toy_captions import caption_inputs, captioned_run, objects, pids, until

from captioning.tiny import write_paligemma
from jobs.cli import main
from tips_ray.captioning.stream import due_chunks
from tips_ray.launch.live_captions import caption_all

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_paligemma(tmp_path_factory.mktemp("paligemma"))


def test_a_job_that_is_killed_goes_on_where_it_stopped(tmp_path, model):
    config = captioned_run(tmp_path, model, rows=200)
    index, inputs = caption_inputs(config)
    store = inputs.access.store
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.cli", "caption", str(tmp_path / "run.yaml")]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: len(objects(store)) >= 5)
    workers = [pid for pid in family(job.pid) if "Agent" not in command_of(pid)]  # Ray's agents stay a minute
    job.kill()
    job.wait()
    until(lambda: not any(map(command_of, workers)), 60)
    before = objects(store)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    after = objects(store)
    assert 5 <= len(before) < 50 and f"{len(before)} have their captions" in again.stdout
    assert due_chunks(index, config, store).num_rows == 0 and len(after) == 50
    assert {path: after[path] for path in before} == before


@pytest.fixture
def nodes(monkeypatch) -> Iterator[Nodes]:
    """Two nodes, one of which may be removed."""
    with nodes_of_cluster(monkeypatch) as nodes:
        nodes.add(3)
        nodes.add(3)
        yield nodes


def test_a_cluster_makes_the_index_and_captions_on_without_a_node_that_is_killed(tmp_path, model, nodes, capsys):
    config = captioned_run(tmp_path, model, rows=400)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert main(["index", str(tmp_path / "run.yaml"), "--decode"]) == 0
    assert "400 rows in " in (told := capsys.readouterr().out) and "1 bad rows: not an image" in told
    index, inputs = caption_inputs(config)
    store, made = inputs.access.store, []
    thread = threading.Thread(target=lambda: made.append(caption_all(inputs, due_chunks(index, config, store))))
    thread.start()
    until(lambda: len(objects(store)) >= 5 and pids("CaptionActor"))
    before = objects(store)
    (pid,) = pids("CaptionActor")
    os.kill(_parent(pid), signal.SIGKILL)
    thread.join(300)
    after = objects(store)
    assert made and due_chunks(index, config, store).num_rows == 0 and len(after) == 100
    assert {path: after[path] for path in before} == before


def _parent(pid: int) -> int:
    """The parent of a worker process: its node's raylet."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
