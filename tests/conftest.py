"""Servers and clusters that tests share, the order in which tests run, and what they cost."""

import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import costs
import pytest
from faulty_door import FaultyDoor, faulty_door

from tips_ray.demo.s3_server import LocalS3, local_s3
from tips_ray.runs.mlflow_access import mlflow_client
from tips_ray.storage import errors

LAYERS = ("heavy", "ray", "slow", "variant")
"""Markers, the dearest last; a test belongs to the last that it has."""


def pytest_configure(config: pytest.Config) -> None:
    """Restore Ctrl-C, which a shell's background job ignores, as would the commands that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    costs.count_commands()
    gc.disable()  # until all tests are imported: looking for garbage among modules takes a quarter of that time


def pytest_collection_finish() -> None:
    """Leave what the imports made to no later search for garbage."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    gc.unfreeze()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    terminalreporter.section("what the tests started")
    for line in costs.lines():
        terminalreporter.write_line(line)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever takes the S3 server or a database of MLflow is heavy; cheap tests come first."""
    for item in items:
        if {"s3_server", "mlflow_database"} & set(getattr(item, "fixturenames", ())):
            item.add_marker("heavy")
    items.sort(key=_layer)


def _layer(item: pytest.Item) -> int:
    return max((LAYERS.index(mark.name) + 1 for mark in item.iter_markers() if mark.name in LAYERS), default=0)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[LocalS3]:
    """A real S3 server, for all tests."""
    with ExitStack() as stack:
        with costs.waiting("S3 servers", 1):
            server = stack.enter_context(local_s3(tmp_path_factory.mktemp("s3")))
        yield server


@contextmanager
def _as_s3(server: LocalS3) -> Iterator[LocalS3]:
    """s3:// URIs refer to the server, in processes that the block starts too."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture
def s3(s3_server) -> Iterator[LocalS3]:
    """The server; s3:// URIs refer to it during the test."""
    with _as_s3(s3_server):
        yield s3_server


@pytest.fixture(scope="module")
def s3_of_file(s3_server) -> Iterator[LocalS3]:
    """The server; s3:// URIs refer to it during the tests of the file."""
    with _as_s3(s3_server):
        yield s3_server


@pytest.fixture
def door(s3, monkeypatch) -> Iterator[FaultyDoor]:
    """A faulty door in front of the server; s3:// URIs refer to it, and failed calls are retried at once."""
    with faulty_door(s3.endpoint_url) as door:
        monkeypatch.setenv("AWS_ENDPOINT_URL", door.endpoint_url)
        monkeypatch.setattr(errors, "BACKOFF_SECONDS", (0.01, 0.05))
        yield door


@pytest.fixture(scope="session")
def mlflow_database(tmp_path_factory) -> Path:
    """A database with MLflow's tables, which take seconds to make: tests use copies."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    mlflow_client(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session", autouse=True)
def _runs_of_tests_share_a_database(tmp_path_factory) -> Iterator[None]:
    """A database of its own, made anew, would cost each run seconds; see `toy_run.tiny_run`."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIPS_RAY_TESTS_MLFLOW", str(tmp_path_factory.mktemp("mlflow_of_runs") / "mlflow.db"))
        yield


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.heavy)])
def folder(request, tmp_path) -> str:
    """An empty folder, local and on a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "folder")
    return f"{request.getfixturevalue('s3').make_bucket('folders')}/{tmp_path.name}"


@pytest.fixture(scope="module", autouse=True)
def no_other_ray_is_left() -> Iterator[None]:
    """Fail the file that leaves a Ray of its own running, not the next one that starts Ray."""
    yield
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized() and ray.get_runtime_context().gcs_address not in _SHARED:
        ray.shutdown()
        pytest.fail("this file left Ray running: end it, or take the fixture cluster")


_SHARED: set[str] = set()
"""Addresses of the clusters that the fixture `cluster` started."""


@pytest.fixture(scope="session")
def _ray_ends() -> Iterator[None]:
    yield
    sys.modules["ray"].shutdown()


@pytest.fixture(scope="module")
def cluster(s3_server, _ray_ends) -> None:
    """Ray on this machine, for the tests of all files; started again only after a test with nodes of its own.

    Its processes know the S3 server as s3://.
    """
    import ray

    if not ray.is_initialized():
        with _as_s3(s3_server), costs.waiting("Ray clusters", 1):
            ray.init("local", num_cpus=6, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
        _SHARED.add(ray.get_runtime_context().gcs_address)
