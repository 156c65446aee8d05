"""Restart a run whose driver was killed or whose cluster head was lost; Ray recovers from neither."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from tips_ray import storage
from tips_ray.errors import RunFailedError
from tips_ray.runs.checkpoint import checkpoints_of, newest_step
from tips_ray.runs.folder import RunFolder

TRIES = 5
"""Failed starts in a row without a new checkpoint."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 300.0
MISTAKE, INTERRUPTED, TERMINATED = 2, 130, 143


def supervise(command: Sequence[str], folder: RunFolder, sleep: Callable[[float], None] = time.sleep) -> int:
    """Run `command`, one start of the run, until it ends well or would fail again; returns its exit code.

    Args:
        command: starts a driver, in a process of its own.
        folder: run folder, which shows whether there is progress and whether an error would recur.
        sleep: called between two starts.

    Raises:
        RunFailedError: it has failed `TRIES` times without a new checkpoint.
    """
    failed, saved, has_run = 0, _saved_step(folder), False
    while True:
        begun = datetime.now(UTC).isoformat()
        code = _ended(command)
        has_run = has_run or code != MISTAKE  # later this code means that the cluster is away
        if code in (0, INTERRUPTED, TERMINATED) or not has_run or _would_come_again(folder, begun):
            return code
        failed, saved = (1, _saved_step(folder)) if _saved_step(folder) > saved else (failed + 1, saved)
        if failed == TRIES:
            raise RunFailedError(
                f"the run has failed {TRIES} times without a new checkpoint, the last time with code {code}: mend what "
                "its last lines say, then the same command goes on"
            )
        seconds = min(FIRST_WAIT_SECONDS * 2 ** (failed - 1), LONGEST_WAIT_SECONDS)
        print(f"the driver ended with code {code}; it starts again in {seconds:.0f} s", flush=True)
        sleep(seconds)


def _ended(command: Sequence[str]) -> int:
    """The exit code; negative: the signal that killed it. Ctrl-C reaches the driver too, which then ends by itself.

    SIGTERM is passed on and ends the run: the code is `TERMINATED`, unless the driver ends with 0.
    """
    terminated = False

    def terminate(number: int, frame: object) -> None:
        nonlocal terminated
        terminated = True
        driver.terminate()

    with subprocess.Popen(command) as driver:
        before = signal.signal(signal.SIGTERM, terminate)
        try:
            code = _waited(driver)
            return TERMINATED if terminated and code else code
        finally:
            signal.signal(signal.SIGTERM, before)


def _waited(driver: subprocess.Popen) -> int:
    while True:
        try:
            return driver.wait()
        except KeyboardInterrupt:
            continue


def _saved_step(folder: RunFolder) -> int:
    return newest_step(checkpoints_of(folder.uri))


def _would_come_again(folder: RunFolder, since: str) -> bool:
    try:
        return any(event["time"] > since for event in folder.final_failures())
    except storage.StorageError:
        return False
