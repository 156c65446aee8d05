"""MLflow with a real database; the slow test has a real server."""

import errno
import json
import logging
import math
import os
import pickle
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient
from sqlalchemy.exc import OperationalError
from toy import TOY

from tips_ray.config import override
from tips_ray.config.run import RunConfig
from tips_ray.errors import CheckWarning
from tips_ray.launch.checks import tracking_answers
from tips_ray.runs import RunFolder, leased
from tips_ray.runs.mlflow_access import TrackingError, database_path, mlflow_client
from tips_ray.runs.mlflow_checks import _revisions
from tips_ray.runs.mlflow_ends import tell_ends
from tips_ray.runs.mlflow_handle import TrackingHandle
from tips_ray.runs.mlflow_runs import tracking_uri
from tips_ray.runs.status import RunStatus, status_of
from tips_ray.runs.tracking import Tracking, start_tracking


def _config(storage: Path | str, **values) -> RunConfig:
    tree = {**TOY, "name": "small", "storage": str(storage), "data": {"sources": [{"uri": "photos"}]}}
    values = {"global_batch_images": 8, **values}
    return override(RunConfig, tree, {key.replace("__", "."): value for key, value in values.items()})


@pytest.fixture(scope="module")
def runs(tmp_path_factory, mlflow_database):
    """The storage of all runs here, which share a database."""
    path = tmp_path_factory.mktemp("runs")
    shutil.copy(mlflow_database, path / "mlflow.db")
    return path


@pytest.fixture
def folder(runs, tmp_path):
    path = runs / tmp_path.name
    path.mkdir()
    return str(path)


def _run(config: RunConfig, folder: str):
    run_id = json.loads(Path(folder, "mlflow.json").read_text())["run_id"]
    return MlflowClient(tracking_uri(config)).get_run(run_id)


def _ended(config: RunConfig, folder: str, step: int | None = None) -> Tracking:
    """A start that was stopped at once."""
    tracking = start_tracking(config, folder, step)
    tracking.finish("KILLED")
    return tracking


def _wait_until(is_so: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _data(run) -> list:
    return run.inputs.dataset_inputs


def _history(config: RunConfig, folder: str, name: str) -> list[tuple[int, float]]:
    client = MlflowClient(tracking_uri(config))
    return [(point.step, point.value) for point in client.get_metric_history(_run(config, folder).info.run_id, name)]


def test_a_local_run_is_tracked_beside_its_folder_under_an_absolute_uri(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tracking_uri(_config("runs")) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    monkeypatch.setenv("HOME", str(tmp_path))
    for storage in (f"file://{tmp_path}/runs", "~/runs"):
        assert tracking_uri(_config(storage)) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert tracking_uri(_config("runs", tracking__mlflow_uri="sqlite:///~/b.db")) == f"sqlite:///{tmp_path}/b.db"
    assert tracking_uri(_config("runs", tracking__mlflow_uri="sqlite:///a/b.db")) == f"sqlite:///{tmp_path}/a/b.db"
    assert tracking_uri(_config("runs", tracking__mlflow_uri="http://host:5000")) == "http://host:5000"


def test_a_run_on_s3_without_a_server_is_not_tracked():
    tracking = start_tracking(_config("s3://runs"), "s3://runs/small")
    tracking.log(1, {"loss/total": 1.0})
    tracking.handle().log(1, {"loss/total": 1.0})
    tracking.finish("FINISHED")
    assert not tracking.run_id and tracking.how_to_view is None


@pytest.mark.heavy
def test_a_run_has_its_params_data_and_metrics(runs, folder):
    config = _config(runs)
    tags = {"mlflow.parentRunId": "sweep", "batch_fingerprint": "cd" * 32}
    tracking = start_tracking(config, folder, None, "ab" * 32, tags)
    tracking.log(10, {"loss/total": 2.5, "grad_norm": math.nan})
    tracking.finish("FINISHED")
    run = _run(config, folder)
    assert (run.info.run_name, run.info.status) == ("small", "FINISHED")
    assert run.data.params["schedule.peak_lr"] == "0.001" and run.data.params["global_batch_images"] == "8"
    assert run.data.metrics["loss/total"] == 2.5 and math.isnan(run.data.metrics["grad_norm"])
    assert [data.dataset.name for data in _data(run)] == ["photos"]
    assert run.data.tags["mlflow.parentRunId"] == "sweep" and run.data.tags["run_folder"] == folder
    assert run.data.tags["batch_fingerprint"] == "cd" * 32


@pytest.mark.heavy
def test_a_resume_continues_the_same_run(runs, folder):
    config = _config(runs)
    first = start_tracking(config, folder)
    first.log(10, {"loss/total": 2.5})
    first.finish("FAILED")
    changed = _config(runs, resources__workers=2)
    second = start_tracking(changed, folder, resumed_from_step=10)
    second.log(20, {"loss/total": 2.0})
    _wait_until(lambda: _run(config, folder).info.status == "RUNNING")
    second.finish("KILLED")
    run = _run(config, folder)
    assert first.run_id == second.run_id and run.info.status == "KILLED"
    assert _history(config, folder, "loss/total") == [(10, 2.5), (20, 2.0)]
    assert run.data.tags["resumed_from_step"] == "10" and run.data.tags["changed.resources.workers"] == "2"
    assert run.data.params["resources.workers"] == "1"


def test_a_run_that_the_server_does_not_have_is_made_anew(runs, folder):
    Path(folder, "mlflow.json").write_text('{"run_id": "0123456789abcdef0123456789abcdef"}')
    tracking = start_tracking(_config(runs), folder)
    tracking.finish("KILLED")
    assert _run(_config(runs), folder).info.run_id == tracking.run_id


def test_a_handle_that_was_pickled_logs_more_than_one_request_holds(runs, folder):
    config = _config(runs)
    handle = pickle.loads(pickle.dumps(_ended(config, folder).handle()))
    points = [(step, 1.0 / step) for step in range(1, 1202)]
    for step, value in points:
        handle.log(step, {"loss/total": value})
    handle.close()
    assert _history(config, folder, "loss/total") == points


def test_metrics_go_out_in_the_background_before_the_end(runs, folder, monkeypatch):
    monkeypatch.setattr("tips_ray.runs.mlflow_handle.SEND_EVERY_SECONDS", 0.01)
    config = _config(runs)
    handle = _ended(config, folder).handle()
    handle.log(1, {"loss/total": 1.0})
    _wait_until(lambda: _history(config, folder, "loss/total") == [(1, 1.0)])
    handle.close()


def test_no_credential_of_a_uri_reaches_mlflow(runs, folder):
    source = {"sources": [{"uri": "s3://KEY:SECRET@bucket/photos"}]}
    config = _config(runs, data=source)
    start_tracking(config, folder).finish("FINISHED")
    run = _run(config, folder)
    everything = f"{run.to_dictionary()}{[data.dataset.source for data in _data(run)]}"
    assert "s3://bucket/photos" in everything and "SECRET" not in everything


def test_a_server_that_is_not_there_is_one_sentence(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = _config("s3://runs", tracking__mlflow_uri=f"http://me:SECRET@127.0.0.1:{port}")
    with pytest.raises(ConnectionError) as error:
        start_tracking(config, folder)
    assert str(error.value).startswith(f"tracking.mlflow_uri (http://127.0.0.1:{port}) does not answer (")
    assert "SECRET" not in str(error.value) and len(str(error.value).splitlines()) == 1


def test_a_server_that_goes_away_costs_a_warning_and_keeps_the_metrics(folder, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    handle = TrackingHandle("http://127.0.0.1:9", "0123456789abcdef0123456789abcdef")
    handle.log(1, {"loss/total": 1.0})
    with caplog.at_level(logging.WARNING):
        handle.close()
    assert "MLflow took no metrics, 1 wait" in caplog.text
    assert [metric.value for metric in handle._waiting] == [1.0]


def test_metrics_wait_for_a_database_that_is_away_with_one_warning(runs, folder, monkeypatch, caplog):
    config = _config(runs)
    handle = _ended(config, folder).handle()
    caplog.set_level(logging.WARNING, "tips_ray")
    with monkeypatch.context() as away:
        away.setattr("tips_ray.runs.mlflow_handle.mlflow_client", _fail)
        for step in (1, 2, 3):
            handle.log(step, {"loss/total": 1.0 / step})
            handle._send()
    assert caplog.text.count("training goes on") == 1 and "MLflow took no metrics, 1 wait" in caplog.text
    assert "database is locked" in caplog.text
    handle.close()
    assert _history(config, folder, "loss/total") == [(step, 1.0 / step) for step in (1, 2, 3)]
    assert "MLflow takes metrics again" in caplog.text


def _fail(uri):
    raise OperationalError("SELECT 1", None, sqlite3.OperationalError("database is locked"))


def test_the_newest_metrics_wait(monkeypatch):
    monkeypatch.setattr("tips_ray.runs.mlflow_handle.mlflow_client", _fail)
    monkeypatch.setattr("tips_ray.runs.mlflow_handle.MOST_WAITING", 2)
    handle = TrackingHandle("sqlite:///none.db", "")
    for step in (1, 2, 3):
        handle.log(step, {"loss/total": 1.0})
        handle._send()
    handle.close()
    assert [metric.step for metric in handle._waiting] == [2, 3]


def test_an_end_that_mlflow_does_not_take_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr("tips_ray.runs.tracking.mlflow_client", _fail)
    with caplog.at_level(logging.WARNING):
        Tracking("sqlite:///none.db", "12").finish("FINISHED")
    assert "did not take the end (FINISHED)" in caplog.text and "set_terminated('12', 'FINISHED')" in caplog.text


def test_a_resume_sends_what_mlflow_lacks_of_the_steps_before_and_the_end_sends_the_rest(runs, folder):
    config = _config(runs, log_every_steps=1)
    run_folder = RunFolder(folder)
    for step in (1, 2, 3, 4):
        run_folder.log_metrics(step, {"loss/total": 1.0 / step, "grad_norm": math.nan})
    first = start_tracking(config, folder)
    first.log(2, {"loss/total": 0.5})
    first.finish("KILLED")
    assert _history(config, folder, "loss/total") == [(2, 0.5)]
    second = start_tracking(config, folder, resumed_from_step=3)
    _wait_until(lambda: len(_history(config, folder, "loss/total")) > 1)
    assert sorted(_history(config, folder, "loss/total")) == [(1, 1.0), (2, 0.5), (3, 1.0 / 3)]
    assert [step for step, _ in _history(config, folder, "grad_norm")] == [1, 3]
    second.finish("FINISHED")
    assert sorted(_history(config, folder, "loss/total")) == [(step, 1.0 / step) for step in (1, 2, 3, 4)]


@pytest.mark.parametrize("content", ["", "junk", "[]", '{"run_id": 5}', '{"run_id": ""}'])
def test_a_damaged_note_is_written_again_with_the_run_that_has_the_folder_as_its_tag(content, runs, folder):
    config = _config(runs)
    first = _ended(config, folder)
    Path(folder, "mlflow.json").write_text(content)
    assert _ended(config, folder, 0).run_id == first.run_id
    assert _run(config, folder).info.run_id == first.run_id


def test_a_run_whose_experiment_was_deleted_goes_on_and_says_how_to_restore_it(runs, folder, caplog):
    caplog.set_level(logging.WARNING, "tips_ray")
    config = _config(runs, tracking__experiment=f"of {folder}")
    first = _ended(config, folder)
    client = MlflowClient(tracking_uri(config))
    client.delete_experiment(first.experiment_id)
    with pytest.raises(TrackingError, match=f"restore --experiment-id {first.experiment_id}` where"):
        start_tracking(config, f"{folder}-new")
    _ended(config, folder)
    assert f"restore --experiment-id {first.experiment_id}` where" in caplog.text
    client.restore_experiment(first.experiment_id)
    assert _ended(config, folder).run_id == first.run_id


def test_a_database_of_mlflow_itself_has_the_version_that_is_required(runs):
    _, newest = _revisions()
    with closing(sqlite3.connect(runs / "mlflow.db")) as database:
        assert database.execute("SELECT version_num FROM alembic_version").fetchall() == [(newest,)]


class _Maker:
    """MLflow that makes a database at once; `before` happens while it does."""

    def __init__(self, uri: str, before=lambda: None) -> None:
        self.path, self.before = database_path(uri), before

    def search_experiments(self, max_results: int) -> None:
        assert self.path
        self.path.write_bytes(b"made")
        self.before()


@pytest.mark.parametrize(("there", "then"), [(None, b"made"), (b"", b"made"), (b"of a faster one", b"of a faster one")])
def test_a_new_database_appears_whole_and_never_replaces_that_of_a_faster_run(there, then, tmp_path, monkeypatch):
    path = tmp_path / "runs" / "mlflow.db"

    def meanwhile() -> None:
        assert not path.exists()
        if there is not None:
            path.write_bytes(there)

    monkeypatch.setattr("mlflow.MlflowClient", lambda uri: _Maker(uri, meanwhile))
    mlflow_client(f"sqlite:///{path}")
    assert path.read_bytes() == then and os.listdir(path.parent) == ["mlflow.db"]


def test_a_full_disk_while_a_database_is_made_is_a_sentence_and_leaves_nothing(tmp_path, monkeypatch):
    def no_room() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("mlflow.MlflowClient", lambda uri: _Maker(uri, no_room))
    path = tmp_path / "mlflow.db"
    with pytest.raises(ValueError, match="mlflow.db: no space is left on the device; free some"):
        mlflow_client(f"sqlite:///{path}")
    assert not os.listdir(tmp_path)


@pytest.mark.slow
def test_two_new_runs_at_one_moment_in_one_new_folder_are_both_tracked(tmp_path):
    """MLflow's own set-up of one file by two processes ends in `duplicate column name` in one of them."""
    code = (
        "import sys; from tips_ray.runs.mlflow_access import mlflow_client; mlflow_client(sys.argv[1]).create_run('0')"
    )
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    started = [subprocess.Popen([sys.executable, "-c", code, uri]) for _ in range(2)]
    assert [process.wait(120) for process in started] == [0, 0]
    assert len(MlflowClient(uri).search_runs(["0"])) == 2


@pytest.mark.slow
def test_a_real_server_takes_a_run_from_start_to_end(tmp_path, folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path}/server.db"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    server = subprocess.Popen(command, cwd=tmp_path, env=environment, start_new_session=True)
    try:
        _wait_until_healthy(f"http://127.0.0.1:{port}/health")
        config = _config(tmp_path, tracking__mlflow_uri=f"http://127.0.0.1:{port}")
        tracking = start_tracking(config, folder)
        tracking.log(1, {"loss/total": 1.0, "grad_norm": math.inf})
        tracking.finish("FINISHED")
        assert _run(config, folder).info.status == "FINISHED"
        assert _history(config, folder, "loss/total") == [(1, 1.0)]
        assert tracking.how_to_view == f"http://127.0.0.1:{port}/#/experiments/1/runs/{tracking.run_id}"
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()


def _wait_until_healthy(address: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except OSError:
            assert time.monotonic() < deadline, f"{address} does not answer"
            time.sleep(0.2)


def _log_three_steps(folder: str) -> None:
    logged = RunFolder(folder)
    for step in (1, 2, 3):
        logged.log_metrics(step, {"loss/total": 1.0 / step})


def test_a_complete_run_whose_end_mlflow_did_not_take_is_sent_and_finished(folder, runs):
    config = _config(runs, log_every_steps=1)
    _ended(config, folder)
    _log_three_steps(folder)
    RunFolder(folder).claim(yaml.safe_dump(config.model_dump(mode="json")))
    with leased(folder):
        pass
    complete = replace(status_of(folder), state="complete")
    assert not list(tell_ends([complete]))
    assert _run(config, folder).info.status == "FINISHED"
    assert [step for step, _ in _history(config, folder, "loss/total")] == [1, 2, 3]
    assert (before := _run(config, folder).info.end_time) == _milliseconds(complete)
    with leased(folder):
        pass
    assert not list(tell_ends([replace(status_of(folder), state="complete")]))
    assert _run(config, folder).info.end_time == before, "a run that is finished is left as it is"


def _milliseconds(run: RunStatus) -> int:
    return int(datetime.fromisoformat(run.seen).timestamp() * 1000)


def test_a_run_that_mlflow_knows_is_resumed_while_mlflow_is_away_and_sent_at_its_end(folder, runs):
    config = _config(runs, log_every_steps=1, schedule__total_steps=3)
    known, database = _ended(config, folder).run_id, database_path(tracking_uri(config))
    assert database
    database.rename(away := database.with_suffix(".away"))
    database.write_text("no database")
    try:
        with pytest.raises(CheckWarning, match="sqlite.*; this run goes on without, and is sent to MLflow once that"):
            tracking_answers(override(RunConfig, config.model_dump(), {"name": Path(folder).name}))
        tracking = start_tracking(config, folder, 0)
        with pytest.raises(TrackingError):
            start_tracking(config, f"{folder}-new")
    finally:
        away.rename(database)
    _log_three_steps(folder)
    tracking.finish("FINISHED")
    assert (tracking.run_id, _run(config, folder).info.status) == (known, "FINISHED")
    assert [step for step, _ in _history(config, folder, "loss/total")] == [1, 2, 3]


def test_a_resume_trains_before_mlflow_has_answered(runs, folder, monkeypatch):
    config = _config(runs)
    known = _ended(config, folder).run_id
    answers = threading.Event()
    monkeypatch.setattr("tips_ray.runs.mlflow_follower.require_answer", lambda *arguments: answers.wait(60))
    monkeypatch.setattr("tips_ray.runs.tracking.require_answer", lambda *arguments: pytest.fail("it is asked first"))
    tracking = start_tracking(config, folder, resumed_from_step=7)
    assert tracking.run_id == known and "resumed_from_step" not in _run(config, folder).data.tags
    answers.set()
    tracking.finish("FINISHED")
    assert _run(config, folder).data.tags["resumed_from_step"] == "7"


def test_an_end_that_mlflow_never_answers_is_given_up(runs, folder, monkeypatch, caplog):
    caplog.set_level(logging.WARNING, "tips_ray")
    config = _config(runs)
    _ended(config, folder)
    answers = threading.Event()
    monkeypatch.setattr("tips_ray.runs.mlflow_follower.require_answer", lambda *arguments: answers.wait(60))
    monkeypatch.setattr("tips_ray.runs.tracking.END_SECONDS", {"KILLED": 0.1})
    start_tracking(config, folder, 0).finish("KILLED")
    answers.set()
    assert "did not take the end (KILLED)" in caplog.text


def test_no_metric_is_sent_by_the_thread_that_logs_it(runs, folder, monkeypatch):
    threads = set[str]()

    def sent(handle: TrackingHandle, points: list) -> None:
        threads.add(threading.current_thread().name)

    monkeypatch.setattr(TrackingHandle, "_send_points", sent)
    handle = TrackingHandle("sqlite:///none.db", "1")
    handle.log(1, {"loss/total": 1.0})
    handle.close()
    assert threads == {"mlflow"} and threading.current_thread().name != "mlflow" and not handle._waiting


def test_a_run_shows_what_was_started_where_and_how_it_ended(runs, folder):
    config = _config(runs, tracking__tags={"team": "vision"})
    nodes = [{"host": "a", "cpus": 8, "gpus": 2, "memory_gib": 64, "kinds": ["H200"]}] * 2
    tracking = start_tracking(
        config, folder, generation=3, cluster=lambda: nodes, write_report=lambda path: path.write_text("report")
    )
    RunFolder(folder).log_metrics(1, {"loss/total": 1.0})
    RunFolder(folder).log_event("end", None, status="FINISHED")
    tracking.finish("FINISHED")
    run, client = _run(config, folder), MlflowClient(tracking_uri(config))
    tags = run.data.tags
    assert tags["team"] == "vision" and tags["cluster"] == "2 nodes, 16 CPUs, 4 GPUs (H200)" and tags["host"]
    assert run.data.metrics == {"event/end": 1, "loss/total": 1} and tags["health"] == "early"
    files = {one.path for one in client.list_artifacts(run.info.run_id)}
    assert files == {"config.yaml", "environment", "events.json", "report.html"}
    assert (
        yaml.safe_load(Path(client.download_artifacts(run.info.run_id, "config.yaml")).read_text())["name"] == "small"
    )
    assert json.loads(Path(folder, "mlflow.json").read_text())["told_generation"] == 3
    assert "tracking.tags.team" not in run.data.params
