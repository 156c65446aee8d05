"""Progress of a run: one live line in a terminal, lines in a log, or JSON; read from the run folder alone."""

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from statistics import median
from typing import Any, NamedTuple

from tqdm import tqdm

from tips_ray import console
from tips_ray.config import RunConfig
from tips_ray.console import tell
from tips_ray.launch.beside import beside
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.loss_health import Finding, loss_findings
from tips_ray.runs.restart import STARTS
from tips_ray.words import ago

POLL_SECONDS = 2.0
LINES = 10
"""Progress lines of a whole run, or of other long work, in a log."""
SILENT_SECONDS = 600.0
"""A log gets a line after so long, however little was done."""
HEALTH_SECONDS = 30.0
"""Time between two looks at the health of the losses."""
FIRST_HINT_SECONDS = 30.0
"""Time after which a start says what it waits for; then after twice as long, and so on."""
SPEEDS = 5
"""Logged steps whose median speed tells the time left."""
WAITS = 0.05
"""Share of the time spent waiting for data from which on it is shown."""


def tenths(total: int, told: int = 0) -> Callable[[int], bool]:
    """A function that returns whether a count has reached another tenth of `total` since it last returned True.

    Args:
        told: tenths that count as reached; with -1 the first count returns True.
    """

    def is_due(count: int) -> bool:
        nonlocal told
        part, before = count * LINES // total, told
        told = max(told, part)
        return part > before

    return is_due


class Progress(NamedTuple):
    """Where a run stands."""

    metrics: dict[str, Any]
    """Its last line of metrics."""
    total_steps: int
    seconds_left: float | None
    """At the median of the last speeds; None: there is none yet."""
    workers: int
    ills: tuple[str, ...]
    """What is ill about its losses, in a few words each."""

    @property
    def step(self) -> int:
        return self.metrics["step"]

    def __str__(self) -> str:
        loss, speed = self.metrics.get("loss/total"), self.metrics.get("images_per_second")
        waits = self.metrics.get("data_wait_share") or 0
        parts = [f"loss {loss:.3f}" if loss is not None else "", f"{speed:.0f} images/s" if speed else ""]
        parts += [f"{self.workers} worker{'' if self.workers == 1 else 's'}" if self.workers else ""]
        parts += [f"{waits:.0%} waiting for data" if waits >= WAITS else ""]
        parts += [f"{ago(self.seconds_left)} left" if self.seconds_left else ""]
        return "  ".join(filter(None, [*parts, *(f"! {ill}" for ill in self.ills)]))


@contextmanager
def shown_progress(folder: RunFolder, config: RunConfig, hint: str = "") -> Iterator[None]:
    """Show metrics and changes of the workers until the block ends, then what is ill about the losses.

    Args:
        folder: of the run.
        config: of the run.
        hint: where to look if the workers do not start.
    """
    if console.form() == "quiet":
        yield
        return
    with beside(partial(_follow, _Watch(folder, config), hint), "progress"):
        yield


class _Watch:
    """Reads what is new in a run folder; nothing while the storage does not answer, which must not stop training."""

    def __init__(self, folder: RunFolder, config: RunConfig) -> None:
        self.folder, self.config = folder, config
        self.told, self.seen = len(self._events()), self._last().get("time", "")
        self.started, self.workers, self.ills = time.monotonic(), 0, ()
        self.speeds: deque[float] = deque(maxlen=SPEEDS)
        self.has_begun = False
        self.judged = 0.0

    def news(self) -> list[dict[str, Any]]:
        """Events since the last call."""
        events = self._events()
        found, self.told = events[self.told :], max(self.told, len(events))
        for event in found:
            self.workers = event.get("workers", self.workers) if event["kind"] in STARTS else self.workers
        return found

    def progress(self) -> Progress | None:
        """None where no step was logged since the last call; lines of an earlier start do not count."""
        line = self._last()
        if line.get("time", "") <= self.seen:
            return None
        if self.has_begun and (speed := line.get("images_per_second")):  # the first speed is that of a start
            self.speeds.append(speed)
        self.has_begun, self.seen, total = True, line["time"], self.config.schedule.total_steps
        images = (total - line["step"]) * self.config.global_batch_images
        left = images / median(self.speeds) if self.speeds else None
        return Progress(line, total, left, self.workers, self._ills())

    def findings(self) -> list[Finding]:
        """What is to be said of the losses, see `loss_findings`."""
        with suppress(ValueError):
            return loss_findings(self.config, self.folder.sampled_metrics())
        return []

    def _ills(self) -> tuple[str, ...]:
        if time.monotonic() - self.judged > HEALTH_SECONDS:
            self.ills = tuple(finding.short for finding in self.findings() if finding.level == "ill")
            self.judged = time.monotonic()
        return self.ills

    def _events(self) -> list[dict[str, Any]]:
        with suppress(ValueError):
            return self.folder.read_events()
        return []

    def _last(self) -> dict[str, Any]:
        with suppress(ValueError):
            return self.folder.last_metrics() or {}
        return {}


def _follow(watch: _Watch, hint: str, stop: threading.Event) -> None:
    next_hint = FIRST_HINT_SECONDS
    with _shown(watch.config.schedule.total_steps) as show:
        while True:
            ended = stop.wait(POLL_SECONDS)
            for event in watch.news():
                _tell_event(event)
            if progress := watch.progress():
                show(progress)
            elif not watch.has_begun and not ended and (waited := time.monotonic() - watch.started) > next_hint:
                next_hint *= 2
                _tell_wait(waited, watch.workers, hint)
            if ended:
                break
    if watch.has_begun:
        _tell_ills(watch.findings())


def _tell_event(event: dict[str, Any]) -> None:
    """JSON has every event, lines have those that change the workers."""
    sentence = news(event)
    if sentence or console.form() == "json":
        facts = {key: value for key, value in event.items() if key not in ("kind", "text")}
        tell(event["kind"], sentence, **facts)


def _tell_wait(seconds: float, workers: int, hint: str) -> None:
    awaited = "their processes start, build the networks and read the first batch"
    if workers:
        awaited = f"{workers} of them run, and the first step is not done"
    text = f"starting workers, {seconds:.0f} s so far: {awaited}{f'; {hint}' if hint else ''}"
    tell("starting", text, seconds=round(seconds), workers=workers)


def _tell_ills(findings: list[Finding]) -> None:
    for finding in findings:
        if finding.level == "ill":
            tell("health", f"{'health':10} {finding.about}: {finding.seen}; try: {finding.cure}", **finding._asdict())


def news(event: dict[str, Any]) -> str:
    """A sentence about an event that changes the workers, or a checkpoint's evaluation; empty for others."""
    if event["kind"] == "waiting":
        return f"workers wait for nodes: there is room for {event['room']}, at least {event['min_workers']} must train"
    if event["kind"] == "idle":
        more = event["room"] - event["workers"]
        return f"workers: {event['workers']} train, {more} more would fit, but the global batch is not divided by them"
    if event["kind"] == "damaged":
        return f"the checkpoint of step {event['step']} is damaged, {_instead(event)}: {event['error']}"
    if event["kind"] == "stop":
        return f"workers start again: {event['cause']}"
    if event["kind"] == "change":
        again = f"{event['steps_recomputed']} steps again, {event['seconds_lost']:.0f} s lost"
        return f"training goes on from step {event['step']}; workers: {event['to']} ({event['from']} before); {again}"
    if event["kind"] == "evaluation":
        scores = ", ".join(f"{name} {_value(value)}" for name, value in event["scores"].items())
        told = "; ".join(filter(None, (scores, event.get("failure", "")))) or f"done, {event['seconds']:.0f} s"
        return f"evaluation of step {event['step']}: {told}"
    return ""


def _value(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _instead(event: dict[str, Any]) -> str:
    """What is taken instead of a damaged checkpoint; events of earlier versions do not say it."""
    if event.get("next") == 0:
        return "no older one is left, and the run begins again at step 0"
    return f"that of step {event['next']} is taken" if "next" in event else "the one before is taken"


Show = Callable[[Progress], None]


def _shown(total_steps: int) -> Any:
    """What shows progress in the form of the command: a context manager that yields a `Show`."""
    if console.form() == "json":
        return _objects()
    return _bar(total_steps) if sys.stderr.isatty() else _lines(total_steps)


@contextmanager
def _bar(total_steps: int) -> Iterator[Show]:
    """One live line, as wide as the terminal; the last state stays as a line."""
    form = "{desc} {percentage:3.0f}%|{bar:12}| {n_fmt}/{total_fmt}{postfix}"
    last: list[Progress] = []
    with tqdm(total=total_steps, leave=False, desc="starting workers", bar_format=form, dynamic_ncols=True) as bar:

        def show(progress: Progress) -> None:
            last[:] = [progress]
            bar.set_description_str("step", refresh=False)
            bar.set_postfix_str(str(progress), refresh=False)
            bar.n = progress.step
            bar.refresh()

        yield show
    for progress in last:
        _tell_step(progress)


@contextmanager
def _lines(total_steps: int) -> Iterator[Show]:
    is_due, told = tenths(total_steps, told=-1), time.monotonic()
    print("starting workers", flush=True)

    def show(progress: Progress) -> None:
        nonlocal told
        if is_due(progress.step) or time.monotonic() - told > SILENT_SECONDS:
            told = time.monotonic()
            _tell_step(progress)

    yield show


def _tell_step(progress: Progress) -> None:
    tell("progress", f"step {progress.step}/{progress.total_steps}  {progress}")


@contextmanager
def _objects() -> Iterator[Show]:
    tell("starting", "starting workers", seconds=0, workers=0)

    def show(progress: Progress) -> None:
        left = None if progress.seconds_left is None else round(progress.seconds_left)
        facts = {"step": progress.step, "total_steps": progress.total_steps, "seconds_left": left}
        facts |= {"workers": progress.workers, "ill": progress.ills}
        metrics = {name: value for name, value in progress.metrics.items() if name not in ("step", "time")}
        tell("progress", str(progress), **facts, metrics=metrics)

    yield show
