"""A head of a cluster that is lost."""

import socket
import threading
import time
from collections.abc import Callable

import pytest

from tips_ray.launch import head


@pytest.fixture
def listening(monkeypatch):
    monkeypatch.setattr(head, "LOOK_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _watched(server: socket.socket) -> tuple[threading.Thread, threading.Event]:
    is_over, address = threading.Event(), f"127.0.0.1:{server.getsockname()[1]}"
    thread = threading.Thread(target=head._watch, args=(address, "the same command goes on", is_over))
    thread.start()
    return thread, is_over


def _wait(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + 10
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.02)


def test_a_head_that_is_gone_is_told_once_with_the_cure(listening, capfd):
    thread, _ = _watched(listening)
    time.sleep(0.3)
    assert thread.is_alive()
    listening.close()
    _wait(lambda: not thread.is_alive())
    said = capfd.readouterr().err
    assert said.startswith("error: the head of the cluster at 127.0.0.1:") and said.count("\n") == 1
    assert said.endswith("if it does not come back, Ray ends this process; the same command goes on\n")


def test_nothing_is_told_of_a_head_that_answers(listening, capfd):
    thread, is_over = _watched(listening)
    time.sleep(0.5)
    is_over.set()
    thread.join()
    assert capfd.readouterr().err == ""
