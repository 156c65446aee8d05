"""What stands in MLflow's way, through the real command: a sentence with the cure before a run starts."""

import json
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple, cast

import pytest
from bad_input.world import NOBODY, World

from jobs.cli import main
from tips_ray.demo.s3_server import LocalS3
from tips_ray.runs import mlflow_checks

URI, EXPERIMENT = "tracking.mlflow_uri", "tracking.experiment"
OLDER = "728d730b5ebd"
"""A version of the tables that MLflow had years ago."""


@pytest.fixture
def world(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setattr(mlflow_checks, "LOCK_SECONDS", 0.1)
    return World(tmp_path, cast(LocalS3, None), monkeypatch)


def _database(world: World, *changes: str) -> Path:
    """A database with the tables that the checks read, as MLflow makes them."""
    path = world.folder / "runs" / "mlflow.db"
    path.parent.mkdir(exist_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)")
        database.execute("CREATE TABLE experiments (experiment_id INTEGER, name VARCHAR(256), lifecycle_stage TEXT)")
        database.execute("CREATE TABLE runs (run_uuid VARCHAR(32))")
        database.execute("INSERT INTO alembic_version VALUES (?)", [mlflow_checks._revisions()[1]])
        database.execute("INSERT INTO experiments VALUES (7, 'tips_ray', 'active')")
        for change in changes:
            database.execute(change)
    return path


@contextmanager
def _changed(world: World, change: str) -> Iterator[list[str]]:
    _database(world, change)
    yield []


@contextmanager
def _locked(world: World) -> Iterator[list[str]]:
    with closing(sqlite3.connect(_database(world), isolation_level=None)) as holder:
        holder.execute("BEGIN EXCLUSIVE")
        yield []


@contextmanager
def _read_only(world: World) -> Iterator[list[str]]:
    """Root may write everything: sqlite is told that the file is read-only."""
    path, connect = _database(world), sqlite3.connect

    def read_only(database, *arguments, **options):
        return connect(f"file:{database}?mode=ro", *arguments, **options, uri=True)

    world.monkeypatch.setattr(mlflow_checks.sqlite3, "connect", read_only)
    yield []
    world.monkeypatch.setattr(mlflow_checks.sqlite3, "connect", connect)
    assert path.exists()


@contextmanager
def _file(world: World, content: bytes) -> Iterator[list[str]]:
    (world.folder / "runs").mkdir()
    (world.folder / "runs" / "mlflow.db").write_bytes(content)
    yield []


@contextmanager
def _folder(world: World, uri: str) -> Iterator[list[str]]:
    (world.folder / "mlruns").mkdir()
    yield [f"{URI}={uri.format(world.folder)}"]


@contextmanager
def _full_disk(world: World) -> Iterator[list[str]]:
    usage = mlflow_checks.shutil.disk_usage(world.folder)
    world.monkeypatch.setattr(mlflow_checks.shutil, "disk_usage", lambda path: usage._replace(free=600_000))
    yield []


class _Page(BaseHTTPRequestHandler):
    status = 200
    body = b"<html>Please <b>log in</b></html>"

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/health" else self.status)
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _answering(world: World, status: int, body: bytes = _Page.body) -> Iterator[list[str]]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Answer", (_Page,), {"status": status, "body": body}))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield [f"{URI}=http://me:SECRET@127.0.0.1:{server.server_port}"]
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def _given(world: World, uri: str) -> Iterator[list[str]]:
    yield [f"{URI}={uri}"]


class Obstacle(NamedTuple):
    """What stands in the way: a block that makes it and yields overrides, and words of the sentence."""

    name: str
    make: Callable
    arguments: tuple
    words: tuple[str, ...]


_ACCESS = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
OBSTACLES = (
    Obstacle(
        "experiment deleted",
        _changed,
        ("UPDATE experiments SET lifecycle_stage = 'deleted'",),
        (f"{EXPERIMENT} (tips_ray) was deleted in MLflow", "`mlflow experiments restore --experiment-id 7`"),
    ),
    Obstacle(
        "newer database",
        _changed,
        ("UPDATE alembic_version SET version_num = 'ffffffffffff'",),
        ("newer MLflow (version ffffffffffff", "pip install --upgrade mlflow"),
    ),
    Obstacle(
        "older database",
        _changed,
        (f"UPDATE alembic_version SET version_num = '{OLDER}'",),
        (f"older MLflow (version {OLDER})", "`mlflow db upgrade`"),
    ),
    Obstacle("tables of another", _changed, ("DROP TABLE runs",), ("has not all tables of MLflow", "move it away")),
    Obstacle("locked database", _locked, (), ("database is locked", "end that program")),
    Obstacle("read-only database", _read_only, (), ("readonly database", "make the file and its folder writable")),
    Obstacle(
        "no database", _file, (b"junk " * 400,), ("file is not a database", "move it away, and a new one is made")
    ),
    Obstacle("database is a folder", _folder, ("sqlite:///{}/mlruns",), ("mlruns) is a folder: give the file",)),
    Obstacle("mlruns", _folder, ("mlruns",), ("(mlruns) names a folder", "give sqlite:///FILE", "migrate-filestore")),
    Obstacle("mlruns by path", _folder, ("{}/mlruns",), ("mlruns) names a folder", "give sqlite:///FILE")),
    Obstacle("mlruns by URI", _folder, ("file://{}/mlruns",), ("mlruns) names a folder", "give sqlite:///FILE")),
    Obstacle(
        "a database in memory", _folder, ("sqlite://",), ("(sqlite://) is a database in memory, lost at the end",)
    ),
    Obstacle("full disk", _full_disk, (), ("the disk is full", "0.6 MB are there", "free some space")),
    Obstacle("no such kind", _given, ("ftp://host",), ("ftp://host", "give sqlite:///FILE or http://HOST")),
    Obstacle("no Postgres", _given, (f"postgresql://me:SECRET@{NOBODY}/x",), (f"{URI} (postgresql://{NOBODY}/x)",)),
    Obstacle("401", _answering, (401,), ("refuses access (401)", _ACCESS, "it said: Please log in")),
    Obstacle("403", _answering, (403,), ("refuses access (403)", _ACCESS)),
    Obstacle("404", _answering, (404,), ("has no MLflow at this address (404)", "add the path below which")),
    Obstacle("500", _answering, (500,), ("fails (500): see the log of that server",)),
    Obstacle(
        "host is not allowed",
        _answering,
        (403, b"Invalid Host header - possible DNS rebinding attack detected"),
        ("start the server with --allowed-hosts",),
    ),
    Obstacle("error of a proxy", _answering, (403, b'{"detail": "no"}'), ("a page that is not MLflow's",)),
    Obstacle("empty answer", _answering, (200, b"{}"), ("a page that is not MLflow's",)),
    Obstacle("other JSON", _answering, (200, b'{"experiment": 5}'), ("a page that is not MLflow's",)),
    Obstacle(
        "login page", _answering, (200,), ("a page that is not MLflow's, such as a login", "set MLFLOW_TRACKING_TOKEN")
    ),
)


@pytest.mark.parametrize("obstacle", OBSTACLES, ids=lambda obstacle: obstacle.name.replace(" ", "-"))
def test_what_stands_in_mlflows_way_is_a_sentence_in_a_dry_run_and_at_the_start(obstacle, world, capsys):
    with obstacle.make(world, *obstacle.arguments) as overrides:
        argv = [world.config(), *overrides]
        assert main(["pretrain", *argv, "--dry-run"]) == 2
        said = capsys.readouterr()
        (dry,) = said.err.splitlines()
        assert main(["pretrain", *argv, "--without-ray"]) == 2
        (start,) = capsys.readouterr().err.splitlines()
    assert dry == start and all(word in dry for word in ("error: tracking.", *obstacle.words)), dry
    assert "SECRET" not in dry + said.out and len(dry) < 600
    assert not (world.folder / "runs" / "run").exists()


def test_doctor_says_it_too(world, capsys, monkeypatch):
    monkeypatch.setattr("tips_ray.launch.machine_checks.machine_checks", dict)
    with _answering(world, 403) as overrides:
        assert main(["doctor", world.config(), *overrides]) == 1
    (failed,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    told = " ".join(failed.split())
    assert told.startswith(f"fail tracking {URI} (http://127.0.0.1:") and "refuses access (403)" in told


def test_a_dry_run_leaves_a_database_as_it_was_and_makes_none(world):
    before = _database(world).read_bytes()
    assert main(["pretrain", world.config(), "--dry-run"]) == 0
    assert (world.folder / "runs" / "mlflow.db").read_bytes() == before
    (world.folder / "runs" / "mlflow.db").unlink()
    assert main(["pretrain", world.config(), "--dry-run"]) == 0
    assert not (world.folder / "runs" / "mlflow.db").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"[]", b'{"run_id": 5}', b"\xff", json.dumps("a").encode()])
def test_a_damaged_note_is_a_warning_that_says_how_the_run_goes_on(content, world, capsys):
    note = world.folder / "runs" / "run" / "mlflow.json"
    note.parent.mkdir(parents=True)
    note.write_bytes(content)
    assert main(["pretrain", world.config(), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert f"# tracking   warning: {note} is damaged: the MLflow run whose tag run_folder is this folder" in shown.out
    assert not shown.err
