"""Processor time of a training with tracking and health on beside off, pair by pair.

    python -m benchmarks.tracking [--batch 32] [--steps 40] [--pairs 20] [--variant tiny]

`on` is the loop with the recorder of a real run: run folder, MLflow in a sqlite file, system metrics, and health at
every logged step. `off` is the same loop, steps and batches without MLflow and with a recorder that only keeps a line
per logged step. Health is computed inside the step, so `off` logs a single step of the pair: the other logged steps of
`on` are what health costs. The sides of a pair take turns in one process, the first of them changes from pair to pair,
and both count the processor time of all threads, those that send to MLflow included. Bar: the upper end of the 95 %
interval of the ratio is at most 1.02.
"""

import argparse
import itertools
import logging
import random
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks.loop import CPU, run_config
from benchmarks.train_step import random_batch
from tests.toy_run import toy_job
from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.runs import start_tracking
from tips_ray.runs.tracking import Tracking
from tips_ray.train.loop import train
from tips_ray.train.run_recorder import RunRecorder
from tips_ray.train.state import TrainState, new_state

BAR = 1.02
DRAWS = 10_000


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
    with tempfile.TemporaryDirectory() as folder:
        ratios = _ratios(config, random_batch(config, args.batch, args.crops), Path(folder), args.steps, args.pairs)
    low, high = interval(ratios)
    print(f"processor time, tracking and health on / off: {median(ratios):.4f} (95 % interval {low:.4f} to {high:.4f})")
    print(f"the upper end is {'at most' if high <= BAR else 'above'} {BAR}")


def _ratios(config: RunConfig, batch: Batch, folder: Path, steps: int, pairs: int) -> list[float]:
    quiet = override(RunConfig, config.model_dump(), {"log_every_steps": steps})
    tracked = override(RunConfig, config.model_dump(), {"storage": str(folder), "name": "on"})
    tracking = start_tracking(tracked, str(folder / "on"))
    sides = {
        "on": _Side(tracked, batch, _recorder(tracked, folder / "on", tracking)),
        "off": _Side(quiet, batch, _Silent()),
    }
    for side in sides.values():
        side.seconds(steps)  # imports, memory and threads are there afterwards
    found = []
    for number in range(pairs):
        order = ("on", "off") if number % 2 else ("off", "on")
        spent = {name: sides[name].seconds(steps) for name in order}
        found.append(spent["on"] / spent["off"])
        print(f"pair {number + 1}  on {_ms(spent['on'], steps)}, off {_ms(spent['off'], steps)} a step", flush=True)
    tracking.finish("FINISHED")
    return found


def _recorder(config: RunConfig, folder: Path, tracking: Tracking) -> RunRecorder:
    job = replace(toy_job(config, str(folder)), tracking_uri=tracking.uri, mlflow_run_id=tracking.run_id)
    return RunRecorder(job, 0, CPU, lambda metrics: None)


class _Silent:
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
