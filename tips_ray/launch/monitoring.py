"""What the driver shows to Prometheus: where the run stands, by its folder, and how far captions are ahead of training.

Rank 0 shows the steps itself (`train.worker`). The driver outlives the workers, so it knows of waits and restarts.
"""

import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import partial
from typing import Any, cast

import ray
from ray.exceptions import RayError

from tips_ray.config import RunConfig
from tips_ray.data.stream import CaptionAccess
from tips_ray.launch.beside import beside
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import BEAT_SECONDS, newest
from tips_ray.runs.restart import STARTS, wait_for_nodes
from tips_ray.runs.run import Run
from tips_ray.storage import StorageError
from tips_ray.train.monitoring import RunMetrics

POLL_SECONDS = 5.0
"""Ray exports every ten seconds."""
MISSED_BEATS = 3
COUNTED = (*STARTS, "checkpoint", "damaged", "bad_step", "failure", "stop", "change", "waiting", "idle")
"""Kinds of events that are shown from the beginning, as 0 where there were none."""


class LeaseWatch:
    """Tells whether this driver's lease is renewed, which is a write to the run folder every few seconds.

    A full disk and a read-only store still answer to reads.
    """

    def __init__(self, run_uri: str) -> None:
        self.run_uri = run_uri
        self._seen: tuple[int, int] | None = None
        self._since = 0.0

    def is_written(self, now: float) -> bool:
        """False once the newest lease has stood still for some beats; True where there is none, as in tests.

        Args:
            now: seconds of a monotonic clock.

        Raises:
            StorageError: it cannot be read.
        """
        generation, holder = newest(self.run_uri)
        found = generation, holder.beat if holder else -1
        if found != self._seen:
            self._seen, self._since = found, now
        return holder is None or holder.is_released or now - self._since < MISSED_BEATS * BEAT_SECONDS


@contextmanager
def shown_on_prometheus(run: Run, captions: CaptionAccess | None) -> Iterator[None]:
    """Show the run's state until the block ends."""
    shown = RunMetrics(run.config.name)
    show_limits(shown, run.config)
    try:
        with shown.repeated(), beside(partial(_follow, run, captions, shown), "monitoring"):
            yield
    finally:
        shown.set("tips_ray_run_active", 0)
        shown.set("tips_ray_waiting_for_nodes", 0)


def show_limits(shown: RunMetrics, config: RunConfig) -> None:
    """Show what the config alone says."""
    shown.set("tips_ray_run_active", 1)
    shown.set("tips_ray_total_steps", config.schedule.total_steps)
    shown.set("tips_ray_bad_rows_limit_ratio", config.data.max_bad_fraction)


def _follow(run: Run, captions: CaptionAccess | None, shown: RunMetrics, stop: threading.Event) -> None:
    folder, lease = RunFolder(run.uri), LeaseWatch(run.uri)
    coordinator: Any = captions.coordinator if captions else None
    while True:
        show_folder(shown, folder, lease)
        if coordinator:
            _show_captions(shown, coordinator)
        if stop.wait(POLL_SECONDS):
            return


def show_folder(shown: RunMetrics, folder: RunFolder, lease: LeaseWatch) -> None:
    """Show what the run folder says now, and whether it can be read and written."""
    is_there = True
    try:
        show_events(shown, folder.read_events())
        is_there = lease.is_written(time.monotonic())
    except StorageError:
        is_there = False
    except ValueError:  # a line that somebody has damaged: `runs show` names it
        pass
    shown.set("tips_ray_storage_unreachable", not is_there)


def _show_captions(shown: RunMetrics, coordinator: Any) -> None:
    with suppress(RayError):  # it is busy, or its node is gone, which the run itself reports
        ahead = cast("int | None", ray.get(coordinator.windows_ahead.remote(), timeout=POLL_SECONDS))
        if ahead is None:
            shown.forget("tips_ray_caption_windows_ahead")
        else:
            shown.set("tips_ray_caption_windows_ahead", ahead)


def show_events(shown: RunMetrics, events: Sequence[Mapping[str, Any]]) -> None:
    """Show counts of a run's events, oldest first, its last checkpoint, its workers, and whether it waits for nodes."""
    counts = Counter(event["kind"] for event in events)
    for kind in {*COUNTED, *counts}:
        shown.set("tips_ray_events", counts[kind], kind=kind)
    newest_of = {event["kind"]: event for event in events}
    if saved := newest_of.get("checkpoint"):
        seconds = datetime.fromisoformat(saved["time"]).replace(tzinfo=UTC).timestamp()
        shown.set("tips_ray_last_checkpoint_timestamp_seconds", seconds)
        shown.set("tips_ray_checkpoint_seconds", saved.get("seconds", 0))
    started = next((event for event in reversed(events) if event["kind"] in STARTS), None)
    if started:
        shown.set("tips_ray_workers", started["workers"])
    shown.set("tips_ray_waiting_for_nodes", wait_for_nodes(events) is not None)
