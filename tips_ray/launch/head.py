"""Says so when the head of the cluster is lost. Ray then ends the process, after a minute and without a cure."""

import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from tips_ray.launch.beside import beside

LOOK_SECONDS, LOOKS = 5.0, 4
"""So many looks in a row must find nobody there, with so many seconds between them."""


@contextmanager
def head_watched(cure: str) -> Iterator[None]:
    """During the block, tell once that the head of the cluster that Ray has joined does not answer, and the cure."""
    import ray

    with beside(partial(_watch, ray.get_runtime_context().gcs_address, cure), "head"):
        yield


def _watch(address: str, cure: str, is_over: threading.Event) -> None:
    missed = 0
    while missed < LOOKS:
        if is_over.wait(LOOK_SECONDS):
            return
        missed = 0 if _answers(address) else missed + 1
    sys.stderr.write(
        f"error: the head of the cluster at {address} has not answered for {LOOKS * LOOK_SECONDS:.0f} s; if it "
        f"does not come back, Ray ends this process; {cure}\n"
    )


def _answers(address: str) -> bool:
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), LOOK_SECONDS).close()
    except OSError:
        return False
    return True
