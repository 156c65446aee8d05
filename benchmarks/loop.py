"""The training loop beside bare optimizer steps, in one process: what waiting, metrics and logging cost.

    python -m benchmarks.loop [--variant tiny] [--batch 8] [--steps 40] [--rounds 5]

Both sides take the same micro-batches on the same weights. `loop` is `train/loop.py` with the sink of a real run
(metrics, events, a line every `log_every_steps`) into a folder on this disk; `bare` calls `train_step` alone. The sides
take turns; the median of the rounds' ratios counts. Processor time is given beside wall time: neighbours disturb it
less. Checkpoints are left out: they have a bar of their own.
"""

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import median

import torch

from benchmarks.train_step import random_batch, train_config
from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.train.loop import train
from tips_ray.train.run_inputs import RunInputs
from tips_ray.train.sink import RunSink
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import train_step

CPU = torch.device("cpu")
ENDLESS = 10**9
Spent = tuple[float, float]
"""Seconds of wall and of processor time."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the median ratios of step times and their ranges."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--variant", choices=("tiny", "small"), default="tiny")
    for name, default in (("batch", 8), ("crops", 6), ("steps", 40), ("rounds", 5), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    config = run_config(args.variant, args.batch)
    batch = random_batch(config, args.batch, args.crops)
    with tempfile.TemporaryDirectory() as folder:
        rounds = _rounds(config, batch, Path(folder), args.steps, args.rounds)
    for name, clock in (("wall time", 0), ("processor time", 1)):
        ratios = [looped[clock] / bare[clock] for bare, looped in rounds]
        low, high = min(ratios), max(ratios)
        print(f"loop / bare, {name:15} {median(ratios):.3f} ({low:.3f} to {high:.3f}); bar: at most 1.05", flush=True)


def run_config(variant: str, images: int) -> RunConfig:
    """A run with the defaults of logging, too long to reach its last step and the checkpoint there."""
    tree = train_config(variant).model_dump(exclude={"variant"})
    run = {"name": "loop", "data": {"sources": [{"uri": "unused"}]}, "global_batch_images": images}
    keys = {"schedule.total_steps": ENDLESS, "checkpoint_every_steps": ENDLESS}
    return override(RunConfig, {**tree, **run}, keys | {"views.global_px": tree["image"]["image_size_px"]})


def _rounds(config: RunConfig, batch: Batch, folder: Path, steps: int, rounds: int) -> list[tuple[Spent, Spent]]:
    bare, looped = new_state(config), new_state(config)
    sink = RunSink(RunInputs(config, str(folder), {}, None), 0, CPU, lambda uri, metrics: None)
    _bare(bare, batch, config, 3)
    _looped(looped, batch, config, sink, 3)
    found = []
    for number in range(rounds):
        found.append((_bare(bare, batch, config, steps), _looped(looped, batch, config, sink, steps)))
        bare_ms, loop_ms = (1e3 * spent[0] / steps for spent in found[-1])
        print(f"round {number + 1}  bare {bare_ms:.1f} ms, loop {loop_ms:.1f} ms a step", flush=True)
    return found


def _bare(state: TrainState, batch: Batch, config: RunConfig, steps: int) -> Spent:
    started = _clocks()
    for _ in range(steps):
        train_step(state, [batch], config)
    return _since(started)


def _looped(state: TrainState, batch: Batch, config: RunConfig, sink: RunSink, steps: int) -> Spent:
    """Ends as a stream does that has no more, with the sink written out."""
    started = _clocks()
    try:
        train(state, _some(batch, steps), config, sink)
    except StopIteration:
        pass
    sink.folder.flush()
    return _since(started)


def _clocks() -> Spent:
    return time.perf_counter(), time.process_time()


def _since(started: Spent) -> Spent:
    wall, processor = _clocks()
    return wall - started[0], processor - started[1]


def _some(batch: Batch, steps: int) -> Iterator[Sequence[Batch]]:
    return itertools.repeat([batch], steps)


if __name__ == "__main__":
    logging.basicConfig(level=logging.WARNING)
    main()
