"""Servers and clusters that tests share, and which tests run in one process of pytest-xdist (make test-fast)."""

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from faulty_door import FaultyDoor, faulty_door
from xdist.scheduler import LoadScopeScheduling

from tips_ray.demo.s3_server import LocalS3, local_s3
from tips_ray.storage import errors

ROOT = Path(__file__).parents[1]


class ByFile(LoadScopeScheduling):
    """Tests of a file stay in one process, for its fixtures; so do all that start ranks, which stay warm."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::")[0]
        return "ranks" if "import run_on_ranks" in (ROOT / path).read_text() else path


def pytest_configure(config: pytest.Config) -> None:
    """Restore Ctrl-C, which a shell's background job ignores, as would the commands that tests start and interrupt."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever takes the S3 server is heavy."""
    for item in items:
        if "s3_server" in getattr(item, "fixturenames", ()):
            item.add_marker("heavy")


def pytest_xdist_make_scheduler(config: pytest.Config, log) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory) -> Iterator[LocalS3]:
    """A real S3 server, made once per process."""
    with local_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def s3(s3_server, monkeypatch) -> LocalS3:
    """The server; s3:// URIs refer to it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture
def door(s3, monkeypatch) -> Iterator[FaultyDoor]:
    """A faulty door in front of the server; s3:// URIs refer to it, and failed calls are retried at once."""
    with faulty_door(s3.endpoint_url) as door:
        monkeypatch.setenv("AWS_ENDPOINT_URL", door.endpoint_url)
        monkeypatch.setattr(errors, "BACKOFF_SECONDS", (0.01, 0.05))
        yield door


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.heavy)])
def folder(request, tmp_path) -> str:
    """An empty folder, local and on a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "folder")
    return f"{request.getfixturevalue('s3').make_bucket('folders')}/{tmp_path.name}"


@pytest.fixture(scope="module", autouse=True)
def no_ray_is_left() -> Iterator[None]:
    """Fail the file that leaves Ray running, not the next one that starts Ray."""
    yield
    ray = sys.modules.get("ray")
    if ray and ray.is_initialized():
        ray.shutdown()
        pytest.fail("this file left Ray running: end it, or take the fixture cluster")


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Ray on this machine, for the tests of one file."""
    import ray

    ray.init("local", num_cpus=6, object_store_memory=200 << 20, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()
