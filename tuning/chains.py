"""Chains of commands side by side, each in a session of its own, none of which outlives the call."""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from tips_ray.errors import RunFailedError

POLL_SECONDS = 0.1
LEAVE_SECONDS = 30.0
"""Longest wait for a command that was interrupted, before it is killed with all that it started."""


class Chain(NamedTuple):
    """Commands one after the other, each only if those before it ended with code 0."""

    name: str
    commands: Sequence[Sequence[str]]
    log: Path
    """What they print, in place of that of an earlier try."""


def side_by_side(
    chains: Iterable[Chain], at_a_time: int, environment: Mapping[str, str], tell: Callable[[Chain, float], None]
) -> None:
    """Run all to the end; `tell` gets each that has ended and its seconds.

    Raises:
        RunFailedError: a command failed; what runs beside it was interrupted.
        KeyboardInterrupt: Ctrl-C or SIGTERM came, and all were interrupted.
    """
    waiting, running = deque(chains), list[_Running]()
    with _heard_interrupts() as interrupts:
        try:
            while waiting or running:
                if interrupts:
                    raise KeyboardInterrupt
                while waiting and len(running) < at_a_time:
                    running.append(_Running(waiting.popleft(), environment))
                for one in [one for one in running if one.is_complete()]:
                    running.remove(one)
                    tell(one.chain, time.perf_counter() - one.started)
                time.sleep(POLL_SECONDS)
        finally:
            _interrupt(running)


class _Running:
    """A chain that has started."""

    def __init__(self, chain: Chain, environment: Mapping[str, str]) -> None:
        self.chain, self.environment, self.started = chain, environment, time.perf_counter()
        self.left = deque(chain.commands)
        chain.log.parent.mkdir(parents=True, exist_ok=True)
        chain.log.unlink(missing_ok=True)
        self.process = self._start()

    def _start(self) -> subprocess.Popen:
        with self.chain.log.open("a") as log:
            return subprocess.Popen(
                self.left.popleft(), env=self.environment, stdout=log, stderr=log, start_new_session=True
            )

    def is_complete(self) -> bool:
        """Starts the next command where one has ended."""
        code = self.process.poll()
        if code:
            raise RunFailedError(f"{self.chain.name} failed (code {code}): {_last(self.chain.log)}; {self.chain.log}")
        if code == 0 and self.left:
            self.process = self._start()
            return False
        return code == 0


def _last(log: Path) -> str:
    """What the user is told of a failure."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it printed nothing"]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines)[-1].rstrip(".")


def _interrupt(running: Iterable[_Running]) -> None:
    """Ask all to leave, then leave nothing of their sessions; another Ctrl-C does not hasten it."""
    processes = [one.process for one in running]
    if not processes:
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    for process in processes:
        process.send_signal(signal.SIGINT)
    ends = time.monotonic() + LEAVE_SECONDS
    for process in processes:
        try:
            process.wait(max(ends - time.monotonic(), 0))
        except subprocess.TimeoutExpired:
            pass
        _kill_session(process)
    signal.signal(signal.SIGINT, before)


def _kill_session(process: subprocess.Popen) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # all have left
    process.wait()


@contextmanager
def _heard_interrupts() -> Iterator[list[int]]:
    """Numbers of the signals SIGINT and SIGTERM that came; an exception could come while a command is being started.

    A shell's background job ignores SIGINT, as would the commands that it starts.
    """
    numbers, heard = (signal.SIGINT, signal.SIGTERM), list[int]()
    before = [signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers]
    try:
        yield heard
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
