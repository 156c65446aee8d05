"""MLflow is told how a run ended whose driver was killed, by the next command that touches the run."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST
from test_status import _held, _run

from jobs.cli import main
from tips_ray import storage
from tips_ray.runs import lease, mlflow_ends
from tips_ray.runs.mlflow_access import TrackingError
from tips_ray.runs.mlflow_ends import tell_ends
from tips_ray.runs.mlflow_note import MlflowNote, keep_note, stored_note
from tips_ray.runs.status import status_of, statuses_below

GONE = {"process_start": "1"}
"""A holder whose process has ended on this machine."""


class _Mlflow:
    """Runs and the ends that they were told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[str] = []
        self.ends: dict[str, str] = {}
        self.is_away = False
        monkeypatch.setattr(mlflow_ends, "require_answer", self._answer)
        monkeypatch.setattr(mlflow_ends, "mlflow_client", lambda uri: self)
        monkeypatch.setattr(mlflow_ends, "send_events", lambda *arguments: None)
        monkeypatch.setattr(mlflow_ends, "catch_up", lambda *arguments: None)

    def _answer(self, uri: str, key: str, seconds: float) -> None:
        self.asked.append(uri)
        if self.is_away:
            raise TrackingError("it does not answer")

    def get_run(self, run_id: str) -> Any:
        if run_id == "deleted":
            raise MlflowException("no such run", error_code=RESOURCE_DOES_NOT_EXIST)
        return SimpleNamespace(info=SimpleNamespace(status=self.ends.get(run_id, "RUNNING")))

    def set_terminated(self, run_id: str, status: str, end_time: int | None) -> None:
        self.ends[run_id] = status


@pytest.fixture
def mlflow(monkeypatch) -> _Mlflow:
    return _Mlflow(monkeypatch)


def _begun(root: Path, name: str, steps: int = 50, checkpoint: int | None = 50, run_id: str = "", **end: str) -> str:
    """A run that MLflow has, in a storage with a database."""
    (root / "mlflow.db").touch()
    uri = f"{root}/{name}"
    _run(uri, steps, checkpoint, **end)
    keep_note(uri, MlflowNote(run_id or name, "1", f"sqlite:///{root}/mlflow.db", uri))
    return uri


def test_every_end_that_mlflow_does_not_know_is_told_once(tmp_path, mlflow):
    for name, checkpoint, end in (("killed", 50, {}), ("saved", 100, {}), ("failed", 50, {"status": "FAILED"})):
        _held(_begun(tmp_path, name, 100, checkpoint, **end), **GONE if not end else {"is_released": True})
    _held(_begun(tmp_path, "elsewhere"), place="another machine", beat=0)
    _held(_begun(tmp_path, "alive"))
    assert not list(tell_ends(statuses_below(str(tmp_path))))
    assert mlflow.ends == {"killed": "KILLED", "saved": "FINISHED", "failed": "FAILED"}
    assert mlflow.asked == [f"sqlite:///{tmp_path}/mlflow.db"]
    assert not list(tell_ends(statuses_below(str(tmp_path))))
    assert len(mlflow.asked) == 1, "the folders say that the ends were told"


def test_a_password_that_the_run_folder_does_not_hold_comes_from_the_given_config(tmp_path, mlflow):
    uri = _begun(tmp_path, "killed")
    _held(uri, **GONE)
    run = replace(status_of(uri), config={"tracking": {"mlflow_uri": "http://host:5000"}})
    run = replace(run, note=MlflowNote("killed", "1", "http://host:5000", uri))
    assert not list(tell_ends([run], "http://me:word@host:5000"))
    assert mlflow.asked == ["http://me:word@host:5000"] and mlflow.ends == {"killed": "KILLED"}


def test_an_mlflow_that_is_away_is_asked_once_for_all_runs_and_again_by_the_next_command(tmp_path, mlflow):
    for number in range(3):
        _held(_begun(tmp_path, f"killed-{number}"), **GONE)
    mlflow.is_away = True
    (line,) = tell_ends(statuses_below(str(tmp_path)))
    assert line == "tracking   MLflow may not know yet how 3 runs ended: it does not answer"
    assert len(mlflow.asked) == 1
    mlflow.is_away = False
    assert not list(tell_ends(statuses_below(str(tmp_path)))) and len(mlflow.ends) == 3


def test_a_storage_that_cannot_be_written_costs_another_question_and_no_traceback(tmp_path, mlflow, monkeypatch):
    _held(_begun(tmp_path, "killed"), **GONE)

    def refused(*arguments: Any) -> None:
        raise storage.StorageError("read-only")

    runs = statuses_below(str(tmp_path))
    monkeypatch.setattr(storage, "write_text", refused)
    assert not list(tell_ends(runs)) and not list(tell_ends(runs))
    assert mlflow.ends == {"killed": "KILLED"} and len(mlflow.asked) == 2


def test_a_start_that_began_meanwhile_is_left_alone(tmp_path, mlflow):
    _held(uri := _begun(tmp_path, "killed"), **GONE)
    before = status_of(uri)
    with lease.leased(uri):
        assert not list(tell_ends([before])) and not mlflow.ends
    note = stored_note(uri)
    assert note and note.told_generation == 0


def test_a_run_that_mlflow_has_lost_or_whose_database_is_gone_costs_nothing_later(tmp_path, mlflow):
    _held(uri := _begun(tmp_path, "killed", run_id="deleted"), **GONE)
    assert not list(tell_ends([status_of(uri)])) and not list(tell_ends([status_of(uri)]))
    assert len(mlflow.asked) == 1 and not mlflow.ends
    (tmp_path / "mlflow.db").unlink()
    assert not list(tell_ends([replace(status_of(uri), generation=9)]))
    assert len(mlflow.asked) == 1 and not (tmp_path / "mlflow.db").exists()


def test_an_unlocked_run_is_stopped_and_mlflow_knows(tmp_path, mlflow, capsys):
    _held(uri := _begun(tmp_path, "lost"), place="another machine", host="gpu-7", beat=0)
    assert main(["runs", "unlock", uri]) == 0
    one = status_of(uri)
    assert (one.state, mlflow.ends) == ("stopped", {"lost": "KILLED"})
    assert one.why.startswith("unlocked: process") and "on gpu-7" in one.why
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_stop_of_a_killed_run_is_refused_and_tells_mlflow(tmp_path, mlflow, capsys):
    _held(uri := _begun(tmp_path, "killed"), **GONE)
    assert main(["runs", "stop", uri]) == 2
    assert "nothing trains it now" in capsys.readouterr().err and mlflow.ends == {"killed": "KILLED"}


@pytest.mark.heavy
def test_a_list_ends_the_page_of_a_killed_run_when_it_was_last_seen(tmp_path, mlflow_database, capsys):
    shutil.copy(mlflow_database, tmp_path / "mlflow.db")
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    experiment = client.create_experiment("ends", artifact_location=(tmp_path / "mlartifacts").as_uri())
    run_id = client.create_run(experiment).info.run_id
    _held(_begun(tmp_path, "killed", run_id=run_id), **GONE)
    assert main(["runs", "list", str(tmp_path)]) == 0
    run = client.get_run(run_id)
    assert run.info.status == "KILLED" and run.data.metrics["event/start"] == 1
    assert run.info.end_time and abs(run.info.end_time / 1000 - (tmp_path / "killed" / "metrics").stat().st_mtime) < 5
    assert len(capsys.readouterr().out.splitlines()) == 2, "the table alone"
