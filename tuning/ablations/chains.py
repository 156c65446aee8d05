"""Runs chains of commands side by side, each command in a new session; no process outlives the call."""

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
"""Longest wait for an interrupted command, before it is killed with everything that it started."""


class Chain(NamedTuple):
    """Commands to run in order; each starts only if those before it ended with code 0."""

    name: str
    commands: Sequence[Sequence[str]]
    log: Path
    """File for the output of the commands; replaces that of an earlier try."""


def side_by_side(
    chains: Iterable[Chain], at_a_time: int, environment: Mapping[str, str], tell: Callable[[Chain, float], None]
) -> None:
    """Run all chains to the end; `tell` gets each chain that has ended, and its seconds.

    Raises:
        RunFailedError: a command failed; the other chains were interrupted.
        KeyboardInterrupt: Ctrl-C or SIGTERM arrived; all chains were interrupted.
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
        """Whether all commands have ended; starts the next command if one has ended."""
        code = self.process.poll()
        if code:
            raise RunFailedError(f"{self.chain.name} failed (code {code}): {_last(self.chain.log)}; {self.chain.log}")
        if code == 0 and self.left:
            self.process = self._start()
            return False
        return code == 0


def _last(log: Path) -> str:
    """Description of a failure for the user: the last error in the log, or its last line."""
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()] or ["it printed nothing"]
    told = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    return (told or lines)[-1].rstrip(".")


def _interrupt(running: Iterable[_Running]) -> None:
    """Interrupt all commands, wait, then kill what remains of their sessions; ignores further Ctrl-C."""
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
        pass  # all have ended
    process.wait()


@contextmanager
def _heard_interrupts() -> Iterator[list[int]]:
    """Numbers of the SIGINT and SIGTERM signals that arrived; an exception could hit while a command is being started.

    The handlers also help in a shell's background job, which ignores SIGINT, as would the commands that it starts.
    """
    numbers, heard = (signal.SIGINT, signal.SIGTERM), list[int]()
    before = [signal.signal(number, lambda number, frame: heard.append(number)) for number in numbers]
    try:
        yield heard
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
