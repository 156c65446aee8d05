"""A run's metrics for Prometheus, through Ray. Its agent on each node exports them with `ray_` before their names.

A call only changes a number in this process, which Ray sends to the agent every ten seconds: nothing waits. The agent
forgets a gauge that was not set for twenty seconds, so a thread sets all of them again and again.
"""

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Literal, NamedTuple

from ray.util.metrics import Counter, Gauge

REPEAT_SECONDS = 5.0


class Definition(NamedTuple):
    """One metric."""

    kind: Literal["gauge", "counter"]
    what: str
    labels: tuple[str, ...] = ()
    """Labels beside `run`, the name of the run."""


DEFINITIONS = {
    "tips_ray_run_active": Definition("gauge", "1 while the driver of the run lives, 0 when the run has ended"),
    "tips_ray_step": Definition("gauge", "Optimizer steps done, as of the last logged one"),
    "tips_ray_total_steps": Definition("gauge", "Optimizer steps of the whole run"),
    "tips_ray_workers": Definition("gauge", "Workers that train, as of their last start"),
    "tips_ray_images_per_second": Definition("gauge", "Images trained per second over all workers"),
    "tips_ray_loss": Definition("gauge", "Loss of the last logged step, in nats", ("part",)),
    "tips_ray_grad_norm": Definition("gauge", "Norm of the gradient before it is clipped"),
    "tips_ray_mfu_ratio": Definition("gauge", "Model FLOPs utilization"),
    "tips_ray_data_wait_ratio": Definition("gauge", "Share of the time that rank 0 waits for data of any rank"),
    "tips_ray_memory_peak_bytes": Definition("gauge", "Most memory that any worker has used"),
    "tips_ray_bad_rows_ratio": Definition("gauge", "Share of the rows so far that are bad"),
    "tips_ray_bad_rows_limit_ratio": Definition("gauge", "Share of bad rows that stops the run"),
    "tips_ray_skipped_steps": Definition("gauge", "Steps so far that the guard has skipped"),
    "tips_ray_collapse_signs": Definition("gauge", "Signs of collapse in the last logged step; 0 during the warm-up"),
    "tips_ray_checkpoint_stall_seconds": Definition("gauge", "Time that training waited for the last checkpoint"),
    "tips_ray_checkpoint_seconds": Definition("gauge", "Time that the last checkpoint took in the background"),
    "tips_ray_last_checkpoint_timestamp_seconds": Definition("gauge", "When the last checkpoint was complete"),
    "tips_ray_events": Definition("gauge", "Events of the run so far, over all of its starts", ("kind",)),
    "tips_ray_waiting_for_nodes": Definition("gauge", "1 while too few workers have room"),
    "tips_ray_storage_unreachable": Definition("gauge", "1 while the run folder cannot be read or written"),
    "tips_ray_caption_windows_ahead": Definition("gauge", "Windows of the sample order captioned ahead of training"),
    "tips_ray_captioned_images_total": Definition("counter", "Images whose captions are in the store"),
    "tips_ray_uncaptioned_images_total": Definition("counter", "Images that got an error instead of captions"),
}
"""Gauges that count (`tips_ray_events`) begin at 0 and go on after a restart, which Ray's counters cannot."""

OF_LINE: Mapping[str, tuple[str, float]] = {
    "images_per_second": ("tips_ray_images_per_second", 1),
    "grad_norm": ("tips_ray_grad_norm", 1),
    "mfu": ("tips_ray_mfu_ratio", 1),
    "data_wait_share": ("tips_ray_data_wait_ratio", 1),
    "health/memory_peak_gib": ("tips_ray_memory_peak_bytes", 2**30),
    "data/bad_fraction": ("tips_ray_bad_rows_ratio", 1),
    "guard/skipped": ("tips_ray_skipped_steps", 1),
    "checkpoint_stall_ms": ("tips_ray_checkpoint_stall_seconds", 1e-3),
}
"""Name in a line of the run's metrics -> name here and its factor."""


class RunMetrics:
    """The metrics of one run, as one of its processes knows them; gauges stay only inside the block `repeated`."""

    def __init__(self, run_name: str) -> None:
        self.run_name = run_name
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}

    def set(self, name: str, value: float, **labels: str) -> None:
        """Give a gauge its value."""
        tags = {"run": self.run_name, **labels}
        self._values[name, tuple(tags.items())] = float(value)
        _gauge(name).set(float(value), tags)

    def forget(self, name: str) -> None:
        """Let a gauge without labels of its own disappear."""
        self._values.pop((name, (("run", self.run_name),)), None)

    @contextmanager
    def repeated(self) -> Iterator[None]:
        """Set all gauges again every few seconds until the block ends."""
        is_over = threading.Event()
        thread = threading.Thread(target=self._repeat, args=(is_over,), name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _repeat(self, is_over: threading.Event) -> None:
        while not is_over.wait(REPEAT_SECONDS):
            for (name, tags), value in self._values.copy().items():
                _gauge(name).set(value, dict(tags))

    def add(self, name: str, count: float, **labels: str) -> None:
        """Add to a counter; nothing where there is nothing to add."""
        if count > 0:
            _counter(name).inc(float(count), {"run": self.run_name, **labels})

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Show a logged step: those of its metrics that are defined here, and all losses."""
        self.set("tips_ray_step", step)
        for name, value in metrics.items():
            if name in OF_LINE:
                shown, factor = OF_LINE[name]
                self.set(shown, value * factor)
            elif name.startswith("loss/"):
                self.set("tips_ray_loss", value, part=name.removeprefix("loss/"))


@cache
def _gauge(name: str) -> Gauge:
    found = DEFINITIONS[name]
    return Gauge(name, found.what, ("run", *found.labels))


@cache
def _counter(name: str) -> Counter:
    found = DEFINITIONS[name]
    return Counter(name, found.what, ("run", *found.labels))
