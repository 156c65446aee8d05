"""Progress of a run: a bar in a terminal, lines in a log."""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from tqdm import tqdm

from tips_ray.launch.beside import beside
from tips_ray.runs.folder import RunFolder

POLL_SECONDS = 2.0
LINES = 10
"""Progress lines of a whole run, or of other long work, in a log."""
Show = Callable[[dict[str, Any]], None]


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


@contextmanager
def shown_progress(folder: RunFolder, total_steps: int) -> Iterator[None]:
    """Show metrics and changes of the workers, read from the run folder, until the block ends."""
    with beside(partial(_follow, folder, total_steps), "progress"):
        yield


def _follow(folder: RunFolder, total_steps: int, stop: threading.Event) -> None:
    told = len(_read(folder.read_events))
    before = max((line["time"] for line in _read(folder.read_metrics)), default="")
    with _bar(total_steps) if sys.stderr.isatty() else _lines(total_steps) as show:
        while True:
            ended = stop.wait(POLL_SECONDS)
            events = _read(folder.read_events)
            for sentence in filter(None, map(news, events[told:])):
                tqdm.write(sentence)  # above the bar, where there is one
                sys.stdout.flush()
            told = max(told, len(events))
            metrics = _read(folder.read_metrics)
            if metrics and metrics[-1]["time"] > before:  # lines of an earlier start are no news
                show(metrics[-1])
            if ended:
                return


def _read(lines: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The lines; empty while the storage does not answer, because showing progress must not stop training."""
    try:
        return lines()
    except ValueError:
        return []


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
        scores = ", ".join(f"{name} {_shown(value)}" for name, value in event["scores"].items())
        told = "; ".join(filter(None, (scores, event.get("failure", "")))) or f"done, {event['seconds']:.0f} s"
        return f"evaluation of step {event['step']}: {told}"
    return ""


def _shown(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _instead(event: dict[str, Any]) -> str:
    """What is taken instead of a damaged checkpoint; events of earlier versions do not say it."""
    if event.get("next") == 0:
        return "no older one is left, and the run begins again at step 0"
    return f"that of step {event['next']} is taken" if "next" in event else "the one before is taken"


@contextmanager
def _bar(total_steps: int) -> Iterator[Show]:
    with tqdm(total=total_steps, unit="step", leave=False, desc="starting workers") as bar:

        def show(line: dict[str, Any]) -> None:
            if not bar.n:  # steps of an earlier start say nothing about speed
                bar.initial = line["step"]
            bar.set_description_str("training", refresh=False)
            bar.set_postfix_str(_losses(line), refresh=False)
            bar.update(line["step"] - bar.n)

        yield show


@contextmanager
def _lines(total_steps: int) -> Iterator[Show]:
    is_due = tenths(total_steps, told=-1)
    print("starting workers", flush=True)

    def show(line: dict[str, Any]) -> None:
        if is_due(line["step"]):
            print(f"step {line['step']}/{total_steps}  {_losses(line)}", flush=True)

    yield show


def _losses(line: dict[str, Any]) -> str:
    return f"loss {line['loss/total']:.3f}  {line['images_per_second']:.0f} images/s"
