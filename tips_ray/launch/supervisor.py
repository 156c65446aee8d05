"""Restart a run whose driver was killed or whose cluster head was lost; Ray recovers from neither."""

import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from tips_ray import storage
from tips_ray.console import tell
from tips_ray.errors import RunFailedError, RunStopped
from tips_ray.launch.cluster import address, require_cluster
from tips_ray.launch.stops import signals_handled
from tips_ray.memory_kills import memory_kills, memory_kills_since
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import RunIsTrainedError, newest
from tips_ray.runs.restart import last_step
from tips_ray.runs.stop import stop_asked

TRIES = 5
"""Failed starts in a row of which none got farther than those before."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 300.0
LOOK_SECONDS, MOST_AWAY_SECONDS = 10.0, 1800.0
"""Between two looks for a cluster that is away; longest wait for it, over all waits without a step of progress."""
HELD_SECONDS = 30.0
"""Between two starts while another start trains the run."""
MISTAKE, INTERRUPTED = 2, 130


def cluster_answers() -> bool:
    """Somebody listens at RAY_ADDRESS, or the run needs no cluster."""
    try:
        require_cluster()
    except ValueError:
        return False
    return True


def supervise(
    command: Sequence[str],
    folder: RunFolder,
    sleep: Callable[[float], None] = time.sleep,
    answers: Callable[[], bool] = lambda: True,
) -> int:
    """Run `command`, one start of the run, until it ends well or would fail again; returns its exit code.

    Args:
        command: starts a driver, in a process of its own.
        folder: run folder, which shows whether there is progress and whether an error would recur.
        sleep: called between two starts.
        answers: whether the cluster is there. While it is away nothing is started, and a start that could not join it
            does not count as failed.

    While another start trains the run, such as that of a job whose head was lost, it waits, however long: when that one
    ends, it goes on, or finds the run complete.

    Raises:
        RunFailedError: it has failed `TRIES` times without getting farther, or the cluster stays away.
    """
    tries, has_run = _Tries(last_step(folder.uri)), False
    while True:
        begun, kills = datetime.now(UTC).isoformat(), memory_kills()
        code = _ended(command)
        if code == RunIsTrainedError.exit_code and not _was_asked_to_stop(folder):
            _tell_of_holder(folder)
            sleep(HELD_SECONDS)
            continue
        has_run = has_run or code != MISTAKE  # later this code means that the cluster is away
        if code in (0, INTERRUPTED, RunStopped.exit_code) or not has_run or _would_come_again(folder, begun):
            return code
        if _was_asked_to_stop(folder):
            return RunStopped.exit_code
        is_away, ending = not answers(), f"{_in_words(code)}{memory_kills_since(kills)}"
        tries.count(last_step(folder.uri), not is_away or code != MISTAKE, ending)
        if is_away:
            tries.away_seconds = _wait_for_cluster(ending, tries.away_seconds, sleep, answers)
            if _was_asked_to_stop(folder):
                return RunStopped.exit_code
        tell("restart", f"the driver {ending}; it starts again in {tries.pause:.0f} s", seconds=tries.pause)
        sleep(tries.pause)


@dataclass
class _Tries:
    """Starts in a row that have failed without getting farther than those before."""

    farthest: int
    """Step that the run has reached."""
    failed: int = 0
    away_seconds: float = 0.0
    """Waited for the cluster since the run got farther."""

    def count(self, reached: int, has_joined: bool, ending: str) -> None:
        """Count a start that ended; one that could not even join the cluster is not counted.

        Raises:
            RunFailedError: this was the last of `TRIES`.
        """
        if reached > self.farthest:
            self.failed, self.farthest, self.away_seconds = 1, reached, 0.0
        elif has_joined:
            self.failed += 1
        if self.failed == TRIES:
            raise RunFailedError(
                f"the run has failed {TRIES} times without getting farther than step {max(self.farthest, 0)}; the last "
                f"time the driver {ending}: mend what its last lines say, then the same command goes on"
            )

    @property
    def pause(self) -> float:
        """Seconds until the next start."""
        return min(FIRST_WAIT_SECONDS * 2 ** (self.failed - 1), LONGEST_WAIT_SECONDS)


def _tell_of_holder(folder: RunFolder) -> None:
    try:
        holder = newest(folder.uri)[1]
    except storage.StorageError:
        holder = None
    tell("restart", f"this start waits for {holder or 'the other one'}, and asks again every {HELD_SECONDS:.0f} s")


def _wait_for_cluster(
    ending: str, seconds: float, sleep: Callable[[float], None], answers: Callable[[], bool]
) -> float:
    """Wait until the cluster answers; returns `seconds`, those of earlier waits, and this wait's."""
    most = f"{MOST_AWAY_SECONDS / 60:.0f} minutes"
    tell(
        "restart",
        f"the driver {ending}, and the cluster at RAY_ADDRESS ({address()}) does not answer; this waits for it, "
        f"{most} at most",
    )
    looked = time.monotonic()
    while not answers():
        seconds += time.monotonic() - looked
        if seconds >= MOST_AWAY_SECONDS:
            raise RunFailedError(
                f"the cluster at RAY_ADDRESS ({address()}) has been away for {most}: start it again, then the same "
                "command goes on"
            )
        sleep(LOOK_SECONDS)
        seconds, looked = seconds + LOOK_SECONDS, time.monotonic()
    return seconds


def _ended(command: Sequence[str]) -> int:
    """The exit code; negative: the signal that killed it. Ctrl-C reaches the driver too, which then ends by itself.

    Signals of a scheduler are passed on and end the run: the code is `RunStopped`'s, unless the driver ends with 0.
    """
    passed = False

    def pass_on(number: int, frame: object) -> None:
        nonlocal passed
        passed = True
        driver.send_signal(number)

    with subprocess.Popen(command) as driver, signals_handled(pass_on):
        code = _waited(driver)
        return RunStopped.exit_code if passed and code else code


def _in_words(code: int) -> str:
    if code >= 0:
        return f"ended with code {code}"
    known = -code in {number.value for number in signal.Signals}
    return f"was killed by {signal.Signals(-code).name if known else f'signal {-code}'}"


def _waited(driver: subprocess.Popen) -> int:
    while True:
        try:
            return driver.wait()
        except KeyboardInterrupt:
            continue


def _was_asked_to_stop(folder: RunFolder) -> bool:
    """A request came while the driver was about to be lost, or was lost."""
    try:
        return stop_asked(folder.uri, newest(folder.uri)[0]) is not None
    except storage.StorageError:
        return False


def _would_come_again(folder: RunFolder, since: str) -> bool:
    try:
        return any(event["time"] > since for event in folder.final_failures())
    except storage.StorageError:
        return False
