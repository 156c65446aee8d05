"""How far a run has come, how its start before ended, and the seconds from there to the next step."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tips_ray import storage
from tips_ray.runs.checkpoint import checkpoints_of, newest_step
from tips_ray.runs.folder import RunFolder

STARTS = ("start", "resume")


def wait_for_nodes(events: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The newest event, if it says that too few workers fit; evaluations, which go on meanwhile, do not count."""
    newest = next((event for event in reversed(events) if event["kind"] != "evaluation"), None)
    return newest if newest and newest["kind"] == "waiting" else None


@dataclass(frozen=True)
class Before:
    """The start before this one."""

    workers: int
    step: int
    """Last step that it logged or saved."""
    seen: float
    """Time of its last start, checkpoint or log line, in seconds since 1970."""
    stopped: float
    """When its end was noticed; equal to `seen` where no process was left to notice."""
    cause: str


def last_step(run_uri: str) -> int:
    """Last step that the run has logged or saved; -1 where there is none, or while the storage does not answer."""
    try:
        last = RunFolder(run_uri).last_metrics()
    except storage.StorageError:
        last = None
    return max(newest_step(checkpoints_of(run_uri)), last["step"] if last else -1)


def attempt_before(folder: RunFolder) -> Before | None:
    """The start before this one, None if there is none; call it before this one writes."""
    events = folder.read_events()
    last = max((place for place, event in enumerate(events) if event["kind"] in STARTS), default=None)
    if last is None:
        return None
    own = events[last:]
    signs = [event for event in own if event["kind"] in (*STARTS, "checkpoint")]
    signs += filter(None, [folder.last_metrics()])
    seen = max(map(_seconds, signs))
    stopped = next((event for event in own if event["kind"] == "stop"), None)
    step = max(event["step"] for event in signs)
    noticed = _seconds(stopped) if stopped else seen
    return Before(events[last]["workers"], step, seen, max(noticed, seen), _cause(own, stopped))


def _cause(own: Sequence[Mapping[str, Any]], stopped: Mapping[str, Any] | None) -> str:
    if stopped:
        return stopped["cause"]
    ended = next((event["status"] for event in own if event["kind"] == "end"), None)
    return f"started again after the run ended ({ended})" if ended else "the driver was lost"


def _seconds(line: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(line["time"]).replace(tzinfo=UTC).timestamp()


class Restart:
    """Measures one start of a worker: its process, its state, its first data, its first step."""

    def __init__(self) -> None:
        self.begun = time.time()
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def change(self, before: Before, resumed_from: int, workers: int) -> dict[str, Any]:
        """Values of a `change` event; called when the first step is done."""
        parts = {"detect": before.stopped - before.seen, "restart": self.begun - before.stopped, **self.seconds}
        lost = time.time() - before.seen
        parts["step"] = lost - sum(parts.values())
        return {
            "cause": before.cause,
            "from": before.workers,
            "to": workers,
            "steps_recomputed": max(before.step - resumed_from, 0),
            "seconds_lost": round(lost, 3),
            "seconds": {name: round(value, 3) for name, value in parts.items()},
        }
