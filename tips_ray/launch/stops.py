"""How a run that is asked to leave ends: signals of a scheduler become a request, and workers that stay are aborted.

SIGTERM is Kubernetes' and SLURM's notice, SIGHUP a closed terminal's, SIGUSR1 what SLURM sends ahead of a time limit.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tips_ray import storage
from tips_ray.errors import RunInterrupted, RunStopped
from tips_ray.launch.beside import beside
from tips_ray.runs import Run, RunFolder
from tips_ray.runs.restart import wait_for_nodes
from tips_ray.runs.stop import ask_to_stop, stop_asked

SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
LOOK_SECONDS = 5.0
PATIENCE_SECONDS = 60.0
"""How long the request of a signal is tried while the storage does not answer."""

_acting: list[Callable[[str], object]] = []
"""What a signal calls now, by the blocks of `signals_stop`, the outermost first."""


@contextmanager
def signals_stop(act: Callable[[str], object]) -> Iterator[None]:
    """During the block a signal of a scheduler calls `act` with who asks, in a thread: see `signals_handled`.

    In a block inside another both are called, the outer one first: a sweep hears what ends its trial.
    """

    def told(number: int) -> None:
        by = f"{signal.Signals(number).name} to process {os.getpid()} on {socket.gethostname()}"
        sys.stderr.write(f"{by}: the run saves and leaves\n")
        for one in list(_acting):
            one(by)

    def heard(number: int, frame: object) -> None:
        threading.Thread(target=told, args=(number,), daemon=True).start()  # the main thread may be writing to stderr

    _acting.append(act)
    try:
        with signals_handled(heard):
            yield
    finally:
        _acting.remove(act)


@contextmanager
def signals_handled(handler: Callable[[int, Any], None]) -> Iterator[None]:
    """Let `handler` have the signals of a scheduler during the block; ignored signals (nohup) stay ignored."""
    is_main = threading.current_thread() is threading.main_thread()
    kept = {number: signal.getsignal(number) for number in SIGNALS if is_main}
    heeded = [number for number, before in kept.items() if before is not signal.SIG_IGN]
    for number in heeded:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, kept[number])


@contextmanager
def signals_end_quietly() -> Iterator[None]:
    """During the block a signal of a scheduler ends the command with one sentence: nothing is trained yet, or any more.

    Raises:
        SystemExit: 128 and the signal's number.
    """

    def end(number: int, frame: object) -> None:
        name = signal.Signals(number).name
        os.write(
            2, f"{name}: no step is being trained, so there is nothing to save; the same command goes on\n".encode()
        )
        raise SystemExit(128 + number)

    with signals_handled(end):
        yield


def ask_patiently(run: Run, by: str) -> None:
    """Write the request of a signal; the run goes on if the storage does not answer for a minute."""
    try:
        storage.keep_trying(lambda: ask_to_stop(run.uri, by), PATIENCE_SECONDS)
    except ValueError as error:
        sys.stderr.write(f"the run was not asked to stop: {error}\n")


@contextmanager
def stuck_ones_aborted(run: Run) -> Iterator[None]:
    """Interrupt the block, as Ctrl-C does, when the run was asked to stop and goes on for `resources.leave_seconds`.

    A run that waits for nodes has no worker that could leave, and is interrupted at once.

    Raises:
        RunStopped: the run was asked to stop and was interrupted.
    """
    with beside(partial(_interrupt_if_stuck, run), "stop"):
        try:
            yield
        except RunInterrupted as error:
            request = stop_asked(run.uri, run.generation)
            if request is None:
                raise
            raise RunStopped(f"{request}; the workers did not leave by themselves: {error}") from None


def _interrupt_if_stuck(run: Run, is_over: threading.Event) -> None:
    while stop_asked(run.uri, run.generation) is None:
        if is_over.wait(LOOK_SECONDS):
            return
    if not is_over.wait(0 if _waits_for_nodes(run.uri) else run.config.resources.leave_seconds):
        os.kill(os.getpid(), signal.SIGINT)


def _waits_for_nodes(run_uri: str) -> bool:
    """The last that the run folder tells is that there is no room for the fewest workers."""
    folder = RunFolder(run_uri)
    try:
        wait, metrics = wait_for_nodes(folder.read_events()), folder.read_metrics()[-1:]
    except storage.StorageError:
        return False
    return wait is not None and all(line["time"] < wait["time"] for line in metrics)
