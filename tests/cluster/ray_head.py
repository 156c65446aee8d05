"""A head of Ray with its dashboard and a token, in processes of its own, as `ray start` makes it."""

import os
import secrets
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

import psutil
import requests

BIN = str(Path(sys.executable).parent)
START_SECONDS = 120


class Head(NamedTuple):
    """Where its dashboard is, and what commands need to reach it."""

    address: str
    environment: dict[str, str]


@contextmanager
def ray_head(place: Path, cpus: int) -> Iterator[Head]:
    """
    Args:
        place: of its files; Ray's sockets need a short path.
        cpus: that it offers.
    """
    token = place / "token"
    token.write_text(secrets.token_hex(32))
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PATH": f"{BIN}:{os.environ['PATH']}", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}
    environment |= {"RAY_memory_monitor_refresh_ms": "0", "RAY_JOB_STOP_WAIT_TIME_S": "60"}
    gcs, dashboard, http, grpc = _free_ports(4)
    command = [f"{BIN}/ray", "start", "--head", "--block", "--node-ip-address=127.0.0.1", "--disable-usage-stats"]
    command += [f"--port={gcs}", f"--dashboard-port={dashboard}", f"--num-cpus={cpus}", f"--temp-dir={place / 'ray'}"]
    command += [f"--dashboard-agent-listen-port={http}", f"--dashboard-agent-grpc-port={grpc}"]
    command += ["--object-store-memory=104857600"]
    with (place / "head.log").open("wb") as log:
        head = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
    try:
        address = f"http://127.0.0.1:{dashboard}"
        _wait_for(address, head, place / "head.log")
        yield Head(address, {**environment, "RAY_API_SERVER_ADDRESS": address})
    finally:
        _end(head)


def _wait_for(address: str, head: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and head.poll() is None:
        with suppress(requests.RequestException):
            if requests.get(f"{address}/api/version", timeout=5).status_code == 401:  # it serves, and wants the token
                return
        time.sleep(0.5)
    raise AssertionError(f"the head did not start: {log.read_text()[-2000:]}")


def _end(head: subprocess.Popen) -> None:
    """Kill the head with all that it has started."""
    own = [psutil.Process(head.pid)] if head.poll() is None else []
    for process in [*own, *(child for one in own for child in one.children(recursive=True))]:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    head.wait()


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
