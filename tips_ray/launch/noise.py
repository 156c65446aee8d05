"""Lines that Ray's C++ core writes straight to stderr although they ask nothing of the user."""

import atexit
import os
import re
import sys
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import chain, islice
from typing import TypeVar

ItemT = TypeVar("ItemT")
NOISE = re.compile(rb"\[[^\]\n]* E \d+ \d+\] core_worker\.cc:\d+: Actor with class name: [^\n]*\n")
"""A warning about arguments of any actor pool of Ray Data (ray-project/ray#53727); Ray's log files have it too."""
CHUNK_BYTES = 1 << 16
_one_at_a_time = threading.Lock()


def quietly_begun(items: Iterable[ItemT]) -> Iterator[ItemT]:
    """The items; what Ray says while it makes the first one, and starts its actors, passes without the noise."""
    iterator = iter(items)
    with noise_hidden():
        first = list(islice(iterator, 1))
    yield from chain(first, iterator)


@contextmanager
def noise_hidden(descriptor: int = 2) -> Iterator[None]:
    """Let all that is written to the descriptor during the block, also by C++, pass except `NOISE`.

    In a block beside another, of another thread, all passes.
    """
    if not _one_at_a_time.acquire(blocking=False):
        yield
        return
    reader, writer = os.pipe()
    real = os.dup(descriptor)
    os.dup2(writer, descriptor)
    os.close(writer)
    thread = threading.Thread(target=_pass_on, args=(reader, real), name="stderr", daemon=True)
    thread.start()

    def restore() -> None:
        sys.stderr.flush()
        os.dup2(real, descriptor)
        thread.join(timeout=1)  # a process that was started in the block keeps the pipe, and is read on

    atexit.register(restore)  # where the block is in a thread that the command does not wait for
    try:
        yield
    finally:
        atexit.unregister(restore)
        restore()
        _one_at_a_time.release()


def _pass_on(reader: int, real: int) -> None:
    """Ray writes a line in one piece, so a piece holds it whole."""
    while content := os.read(reader, CHUNK_BYTES):
        content = NOISE.sub(b"", content)
        while content:
            content = content[os.write(real, content) :]
    os.close(reader)
    os.close(real)
