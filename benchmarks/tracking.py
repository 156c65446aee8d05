"""Processor time of a training with tracking and health on beside off, pair by pair and part by part.

    python -m benchmarks.tracking [--batch 32] [--steps 40] [--pairs 20] [--variant tiny]

`on` is the loop with the recorder of a real run: run folder, MLflow in a sqlite file, system metrics, and health at
every logged step. `off` is the same loop, steps and batches without MLflow and with a recorder that only keeps a line
per logged step. Health is computed inside the step, so `off` logs a single step of the pair: the other logged steps of
`on` are what health costs. The sides of a pair take turns in one process, the first of them changes from pair to pair,
and both count the processor time of all threads, those that send to MLflow included.

A pair differs from the next by five per cent where other machines share the processor, so hundreds of pairs would be
needed to see one per cent. Therefore the parts of `on` are measured too, by the processor time of the thread in the
functions that do the work, and set against the rest of the same steps. Bar: the upper end of the 95 % interval of that
ratio is at most 1.02.
"""

import argparse
import functools
import itertools
import logging
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.loop import CPU, run_config
from benchmarks.train_step import random_batch
from tests.toy_run import toy_job
from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.runs import start_tracking
from tips_ray.runs.mlflow_handle import TrackingHandle
from tips_ray.runs.system_metrics import SystemMetrics
from tips_ray.runs.tracking import Tracking
from tips_ray.train.health import Health
from tips_ray.train.loop import train
from tips_ray.train.run_recorder import RunRecorder
from tips_ray.train.state import TrainState, new_state

BAR = 1.02
DRAWS = 10_000
PARTS = {
    "health": [(Health, "see_embeddings"), (Health, "see_targets"), (Health, "metrics")],
    "run folder": [(RunRecorder, "log"), (RunRecorder, "note_step"), (RunRecorder, "note_rows")],
    "sends to MLflow": [(TrackingHandle, "_send_points")],
    "system metrics": [(SystemMetrics, "_sample")],
}
"""Functions that do the work of each part; none of them calls another."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ratio of each pair, and their median with its interval."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tracking", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--variant", choices=("tiny", "small"), default="tiny")
    for name, default in (("batch", 32), ("crops", 6), ("steps", 40), ("pairs", 20), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    config = run_config(args.variant, args.batch).model_copy(update={"checkpoint_every_minutes": None})
    batch = random_batch(config, args.batch, args.crops)
    with tempfile.TemporaryDirectory() as folder, _measured() as parts:
        pairs = _pairs(config, batch, Path(folder), args.steps, args.pairs, parts)
    steps = args.steps * args.pairs
    for name in PARTS:
        seconds = sum(pair[name] for pair in pairs)
        print(f"{name:16} {1e3 * seconds / steps:6.2f} ms a step, {seconds / sum(pair['on'] for pair in pairs):.2%}")
    tell_ratio("on / off, pair by pair", [pair["on"] / pair["off"] for pair in pairs])
    high = tell_ratio(
        "on / on without its parts", [pair["on"] / (pair["on"] - sum(pair[part] for part in PARTS)) for pair in pairs]
    )
    print(f"the upper end is {'at most' if high <= BAR else 'above'} {BAR}")


def tell_ratio(what: str, ratios: Sequence[float]) -> float:
    """Print the median of the ratios with its interval; returns the upper end."""
    low, high = interval(ratios)
    print(f"{what}: {median(ratios):.4f} (95 % interval {low:.4f} to {high:.4f})")
    return high


@contextmanager
def _measured() -> Iterator[Counter[str]]:
    """Processor seconds of each part, counted while the block runs."""
    spent: Counter[str] = Counter()
    with ExitStack() as stack:
        for part, functions in PARTS.items():
            for owner, name in functions:
                stack.enter_context(patch.object(owner, name, _timed(getattr(owner, name), part, spent)))
        yield spent


def _timed(function: Any, part: str, spent: Counter[str]) -> Any:
    @functools.wraps(function)
    def timed(*arguments: Any, **named: Any) -> Any:
        started = time.thread_time()
        try:
            return function(*arguments, **named)
        finally:
            spent[part] += time.thread_time() - started  # type: ignore[reportArgumentType]

    return timed


def _pairs(
    config: RunConfig, batch: Batch, folder: Path, steps: int, pairs: int, parts: Counter[str]
) -> list[dict[str, float]]:
    """Processor seconds of both sides and of the parts of `on`, for each pair."""
    quiet = override(RunConfig, config.model_dump(), {"log_every_steps": steps})
    tracked = override(RunConfig, config.model_dump(), {"storage": str(folder), "name": "on"})
    tracking = start_tracking(tracked, str(folder / "on"))
    sides = {
        "off": _Side(quiet, batch, Silent()),
        "on": _Side(tracked, batch, _recorder(tracked, folder / "on", tracking)),
    }
    for side in sides.values():
        side.seconds(steps)  # imports, memory and threads are there afterwards
    found = []
    for number in range(pairs):
        spent: dict[str, float] = {}
        for name in sorted(sides, reverse=bool(number % 2)):
            parts.clear()
            spent[name] = sides[name].seconds(steps)
            spent |= {part: parts[part] for part in PARTS if name == "on"}
        found.append(spent)
        print(f"pair {number + 1}  on {_ms(spent['on'], steps)}, off {_ms(spent['off'], steps)} a step", flush=True)
    tracking.finish("FINISHED")
    return found


def _recorder(config: RunConfig, folder: Path, tracking: Tracking) -> RunRecorder:
    job = replace(toy_job(config, str(folder)), tracking_uri=tracking.uri, mlflow_run_id=tracking.run_id)
    return RunRecorder(job, 0, CPU, lambda metrics: None)


class Silent:
    """A recorder that records nothing."""

    def log(self, step: int, metrics: dict[str, float]) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *arguments, **named: None


class _Side:
    """One side's state; it goes on from pair to pair."""

    def __init__(self, config: RunConfig, batch: Batch, recorder: Any) -> None:
        self._config, self._batch, self._recorder = config, batch, recorder
        self._state: TrainState = new_state(config)

    def seconds(self, steps: int) -> float:
        """Processor time of some steps, of all threads of this process."""
        started = time.process_time()
        with suppress(StopIteration):
            train(self._state, itertools.repeat([self._batch], steps), self._config, self._recorder)
        while isinstance(self._recorder, RunRecorder) and self._recorder.tracking._waiting:
            time.sleep(0.05)  # the other side must not pay for what this one sends
        return time.process_time() - started


def interval(ratios: Sequence[float]) -> tuple[float, float]:
    """95 % interval of the median ratio, by bootstrap over the pairs."""
    draw = random.Random(0)
    medians = sorted(median(draw.choices(ratios, k=len(ratios))) for _ in range(DRAWS))
    return medians[round(0.025 * DRAWS)], medians[round(0.975 * DRAWS)]


def _ms(seconds: float, steps: int) -> str:
    return f"{1e3 * seconds / steps:.1f} ms"


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
