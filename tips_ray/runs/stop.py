"""Asking the start that trains a run to save and leave: `stop.json` in the run folder (docs/formats.md).

The request names the generation of the lease that it ends, so that a later start does not obey it.
"""

import getpass
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Literal

from tips_ray import storage
from tips_ray.runs.lease import newest
from tips_ray.runs.run import Run

Kind = Literal["stop", "pause"]


@dataclass(frozen=True)
class StopRequest:
    """Who asks the start with this generation of the lease to leave; a paused run is meant to go on later."""

    generation: int
    kind: Kind
    by: str
    time: str

    def __str__(self) -> str:
        return f"{'stopped' if self.kind == 'stop' else 'paused'} by {self.by}"


def ask_to_stop(run_uri: str, by: str, kind: Kind = "stop") -> StopRequest:
    """Ask the start that trains the run now to save and leave.

    Args:
        run_uri: the run folder.
        by: who asks, as the run's messages will say.
        kind: `pause` for a run that is meant to go on later.

    Raises:
        ValueError: nothing trains the run.
    """
    generation, holder = newest(run_uri)
    if not generation or (holder and holder.is_gone):
        raise ValueError(f"{run_uri}: nothing trains it now, so there is nothing to stop")
    asked = StopRequest(generation, kind, by, datetime.now(UTC).isoformat(timespec="seconds"))
    storage.write_text(_uri(run_uri), json.dumps(asdict(asked)))
    return asked


def user_here() -> str:
    """Who asks: the user and this machine."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        user = "somebody"
    return f"{user} on {socket.gethostname()}"


def stop_asked(run_uri: str, generation: int) -> StopRequest | None:
    """The request to the start with this generation; None while there is none."""
    try:
        found = StopRequest(**json.loads(storage.read_bytes(_uri(run_uri))))
    except (ValueError, TypeError):  # not there, the storage does not answer, or it is no request: look again later
        return None
    return found if found.generation == generation else None


@contextmanager
def stop_watched(run: Run, watches: bool) -> Iterator[Callable[[], str]]:
    """Yields a function: why the run should stop, as its folder says; a rank that does not watch knows of nothing."""
    found: list[str] = []
    is_over = threading.Event()

    def look() -> None:
        while not (request := stop_asked(run.uri, run.generation)):
            if is_over.wait(run.config.resources.poll_seconds):
                return
        found.append(str(request))

    watch = threading.Thread(target=look, name="stop", daemon=True)
    if run.generation and watches:
        watch.start()
    try:
        yield lambda: found[0] if found else ""
    finally:
        is_over.set()


def _uri(run_uri: str) -> str:
    return storage.join(run_uri, "stop.json")
