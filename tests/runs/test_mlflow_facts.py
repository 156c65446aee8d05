"""Facts, events and system metrics that an MLflow run shows."""

import json
import logging
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tips_ray.config.tracking import TrackingConfig
from tips_ray.runs import system_metrics
from tips_ray.runs.mlflow_events import TABLE, send_events
from tips_ray.runs.mlflow_facts import facts_of_start, git_facts, machine_tags, packages
from tips_ray.runs.system_metrics import SystemMetrics


def _git(folder: Path, *arguments: str) -> str:
    told = ["-c", "user.email=a@example.org", "-c", "user.name=a", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", "-C", folder, *told, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def test_a_run_knows_the_commit_of_the_folder_in_which_its_command_runs(tmp_path, monkeypatch):
    assert git_facts(str(tmp_path)) == {}
    _git(tmp_path, "init", "-q", "-b", "trunk")
    assert git_facts(str(tmp_path)) == {}, "there is no commit"
    (tmp_path / "own.py").write_text("a")
    _git(tmp_path, "add", ".")
    _git(tmp_path, "commit", "-qm", "a")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "new").write_text("unknown to git")
    commit = _git(tmp_path, "rev-parse", "HEAD")
    clean = {"mlflow.source.git.commit": commit, "mlflow.source.git.branch": "trunk", "git.dirty": "false"}
    assert git_facts(str(tmp_path / "out")) == clean
    (tmp_path / "own.py").write_text("b")
    assert git_facts(str(tmp_path)) == {**clean, "git.dirty": "true"}
    monkeypatch.setenv("PATH", "")
    assert git_facts(str(tmp_path)) == {}, "without git"


def test_the_command_is_shown_without_credentials_and_can_be_pasted(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = ["pretrain", "my run.yaml", "tracking.mlflow_uri=http://me:SECRET@host:5000"]
    monkeypatch.setattr(sys, "argv", ["/somewhere/jobs/cli.py", *given])
    facts = facts_of_start()
    assert facts["command"] == "tips-ray pretrain 'my run.yaml' tracking.mlflow_uri=http://host:5000"
    assert facts["mlflow.source.name"] == "tips-ray pretrain" and facts["working_directory"] == str(tmp_path)
    assert facts["version.python"] == ".".join(map(str, sys.version_info[:3])) and "version.torch" in facts


def test_packages_are_those_that_can_be_imported(tmp_path, monkeypatch):
    for number, folder in enumerate(("First-1.0.dist-info", "second_one-2.1+cpu.dist-info", "first-9.dist-info")):
        (tmp_path / str(number) / folder).mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path / str(number)) for number in range(3)])
    assert packages() == "First==1.0\nsecond_one==2.1+cpu\n"


def test_the_machines_of_the_newest_start_are_shown():
    def start(workers: int, hosts: int) -> dict[str, Any]:
        machine = {"hosts": hosts, "cores": 8 * hosts, "memory": "64 GiB", "accelerators": "none"}
        return {"kind": "start", "workers": workers, "machine": machine}

    told = "4 workers on 2 hosts, 16 cores, 64 GiB, accelerators: none"
    assert machine_tags([start(1, 1), start(4, 2), {"kind": "end"}]) == {"machine": told}
    assert machine_tags([{"kind": "waiting"}]) == {}


class _Client:
    """Keeps what MLflow would."""

    def __init__(self) -> None:
        self.points: list[tuple[str, float, int, int]] = []
        self.texts: dict[str, str] = {}
        self.tags: dict[str, str] = {}

    def get_run(self, run_id: str) -> Any:
        newest = {name: value for name, value, _, _ in sorted(self.points, key=lambda point: point[3])}
        return SimpleNamespace(data=SimpleNamespace(metrics=newest, tags=self.tags))

    def log_batch(self, run_id: str, metrics: list) -> None:
        self.points += [(one.key, one.value, one.timestamp, one.step) for one in metrics]

    def log_text(self, run_id: str, text: str, name: str) -> None:
        self.texts[name] = text

    def set_tag(self, run_id: str, name: str, value: str) -> None:
        self.tags[name] = value


def test_events_are_counted_at_their_steps_once_and_shown_as_a_table():
    def event(second: int, kind: str, step: int | None, **what: Any) -> dict[str, Any]:
        return {"time": f"2026-01-01T00:00:0{second}.500000+00:00", "kind": kind, "step": step, **what}

    client: Any = _Client()
    events = [event(0, "waiting", None, room=1), event(1, "start", 0)]
    events += [event(2, "checkpoint", 5, uri="s3://KEY:SECRET@b/runs/a/checkpoints/step-5"), event(3, "stop", None)]
    send_events(client, "1", "s3://KEY:SECRET@b/runs/a", events)
    send_events(client, "1", "s3://KEY:SECRET@b/runs/a", events)
    base = 1_767_225_600_500
    assert client.points == [
        ("event/waiting", 1.0, base, 0),
        ("event/start", 1.0, base + 1000, 0),
        ("event/checkpoint", 1.0, base + 2000, 5),
        ("event/stop", 1.0, base + 3000, 5),
    ]
    table = json.loads(client.texts[TABLE])
    assert table["columns"] == ["time", "kind", "step", "details"]
    assert table["data"][0] == ["2026-01-01T00:00:00", "waiting", 0, "room: 1"]
    assert table["data"][2:] == [
        ["2026-01-01T00:00:02", "checkpoint", 5, "uri: checkpoints/step-5"],
        ["2026-01-01T00:00:03", "stop", 5, ""],
    ]
    assert json.loads(client.tags["mlflow.loggedArtifacts"]) == [{"path": TABLE, "type": "table"}]
    send_events(client, "1", "s3://KEY:SECRET@b/runs/a", [*events, event(4, "checkpoint", 9)])
    assert client.points[4:] == [("event/checkpoint", 2.0, base + 4000, 9)]


class _Handle:
    def __init__(self) -> None:
        self.points: list[tuple[int, dict[str, float]]] = []
        self.has_some = threading.Event()

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.points.append((step, metrics))
        self.has_some.set()


def _measured(handle: Any, node: int | None, monkeypatch) -> set[str]:
    """Names of the first sample."""
    monkeypatch.setattr(system_metrics, "SAMPLE_SECONDS", 0.01)
    measured = SystemMetrics(handle, node, lambda: 7)
    assert handle.has_some.wait(60)
    measured.close()
    step, found = handle.points[0]
    assert step == 7
    return set(found)


@pytest.mark.heavy
def test_a_node_is_measured_under_mlflows_names_until_it_is_closed(monkeypatch):
    one = _measured(_Handle(), None, monkeypatch)
    assert {"system/cpu_utilization_percentage", "system/system_memory_usage_percentage"} <= one
    assert {"system/disk_usage_percentage", "system/network_receive_megabytes"} <= one
    assert _measured(_Handle(), 3, monkeypatch) == {name.replace("system/", "system/node_3/") for name in one}
    for thread in threading.enumerate():
        if thread.name == "system metrics":
            thread.join(30)
            assert not thread.is_alive(), "it ends with close"


def test_without_psutil_training_goes_on_with_a_line_in_the_log(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "psutil", None)
    for name in ("cpu_monitor", "disk_monitor", "network_monitor"):
        monkeypatch.delitem(sys.modules, f"mlflow.system_metrics.metrics.{name}", raising=False)
    caplog.set_level(logging.INFO, "tips_ray")
    handle: Any = _Handle()
    SystemMetrics(handle, None, lambda: 0)
    for thread in threading.enumerate():
        if thread.name == "system metrics":
            thread.join(60)
    assert "is not measured" in caplog.text and "psutil" in caplog.text and not handle.points


@pytest.mark.parametrize("name", ["run_folder", "mlflow.user", "version.torch", "changed.seed", "a" * 251, "a;b", ""])
def test_tags_that_a_run_sets_itself_or_that_mlflow_refuses_are_refused(name):
    with pytest.raises(ValueError, match="tags"):
        TrackingConfig(tags={name: "x"})


def test_tags_of_the_user_and_a_description_are_taken():
    config = TrackingConfig(tags={"team": "vision", "mlflow.note.content": "Why."})
    assert hash(config) == hash(TrackingConfig(tags=dict(reversed(config.tags.items()))))
