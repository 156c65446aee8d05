"""Compares the training loop with bare optimizer steps: the cost of metrics, health, logging and checkpoints.

    python -m benchmarks.loop [--variant tiny] [--batch 8] [--steps 20] [--rounds 25]

All sides use the same micro-batches and initial weights. `loop` is `train/loop.py` with the recorder of a real run
(metrics, health, events, a line every `log_every_steps`) into a folder on this disk. `saves` also starts a checkpoint
in the first step of each round and writes it before the last. `bare` only calls `train_step`. The sides take short
turns, because this machine's speed changes by the second; the median over rounds counts. The cost of a checkpoint is
spread over the steps between two checkpoints of a run with the defaults. Processor time is given beside wall time:
other processes disturb it less, but it includes the writing thread, which has another core.
"""

import argparse
import itertools
import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from statistics import median, quantiles

import torch

from benchmarks.train_step import random_batch, train_config
from tests.toy_run import toy_job
from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.train.loop import train
from tips_ray.train.run_recorder import RunRecorder
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import train_step

CPU = torch.device("cpu")
ENDLESS = 10**9
Spent = tuple[float, float]
"""Seconds of wall time and of processor time."""
DEFAULT_STEPS: int = RunConfig.model_fields["checkpoint_every_steps"].default


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the time that the loop and its checkpoints add to a step."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loop", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--variant", choices=("tiny", "small"), default="tiny")
    for name, default in (("batch", 8), ("crops", 6), ("steps", 20), ("rounds", 25), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(arguments)
    torch.set_num_threads(args.threads)
    config = run_config(args.variant, args.batch)
    batch = random_batch(config, args.batch, args.crops)
    with tempfile.TemporaryDirectory() as folder:
        rounds = _rounds(config, batch, Path(folder), args.steps, args.rounds)
    for name, clock in (("wall", 0), ("processor", 1)):
        _tell(name, [{side: spent[clock] for side, spent in spents.items()} for spents in rounds], args.steps)


def _tell(clock: str, rounds: Sequence[dict[str, float]], steps: int) -> None:
    ratios = [spent["loop"] / spent["bare"] for spent in rounds]
    parts = quantiles(ratios, n=4)
    print(f"{clock} time, loop / bare {median(ratios):.3f} (half of the rounds in {parts[0]:.3f} to {parts[2]:.3f})")
    step = median(spent["bare"] for spent in rounds) / steps
    checkpoint = median(spent["saves"] - spent["loop"] for spent in rounds)
    share = checkpoint / step / DEFAULT_STEPS
    print(f"  a checkpoint adds {1e3 * checkpoint:.0f} ms, one in {DEFAULT_STEPS} steps {share:.2%}; ", end="")
    print(f"all on / all off {median(ratios) + share:.3f}")


def run_config(variant: str, images: int) -> RunConfig:
    """A run with default logging, too long to reach its last step and the checkpoint there."""
    tree = train_config(variant).model_dump(exclude={"variant"})
    run = {"name": "loop", "data": {"sources": [{"uri": "unused"}]}, "global_batch_images": images}
    keys = {"schedule.total_steps": ENDLESS, "checkpoint_every_steps": ENDLESS}
    image_px, patch_px = tree["image"]["image_size_px"], tree["image"]["patch_size_px"]
    views = {"views.global_px": image_px, "views.local_px": round(image_px * 7 / 16 / patch_px) * patch_px}
    return override(RunConfig, {**tree, **run}, keys | views)


def _rounds(config: RunConfig, batch: Batch, folder: Path, steps: int, rounds: int) -> list[dict[str, Spent]]:
    saving = config.model_copy(update={"checkpoint_every_steps": steps})
    sides = {
        "bare": partial(_bare, new_state(config), batch, config),
        "loop": partial(_looped, new_state(config), batch, config, _sink(config, folder / "loop")),
        "saves": partial(_looped, new_state(config), batch, saving, _sink(saving, folder / "saves")),
    }
    for side in sides.values():
        side(steps - 1)  # a checkpoint is then due in the first step of each round
    found = []
    for number in range(rounds):
        found.append({name: side(steps) for name, side in sides.items()})
        told = ", ".join(f"{name} {1e3 * spent[0] / steps:.1f}" for name, spent in found[-1].items())
        print(f"round {number + 1}  {told} ms a step", flush=True)
    return found


def _sink(config: RunConfig, folder: Path) -> RunRecorder:
    return RunRecorder(toy_job(config, str(folder)), 0, CPU, lambda metrics: None)


def _bare(state: TrainState, batch: Batch, config: RunConfig, steps: int) -> Spent:
    started = _clocks()
    for _ in range(steps):
        train_step(state, [batch], config)
    return _since(started)


def _looped(state: TrainState, batch: Batch, config: RunConfig, recorder: RunRecorder, steps: int) -> Spent:
    """Time of `steps` steps of the loop, which ends like a stream without more batches; includes the final flush."""
    started = _clocks()
    try:
        train(state, _some(batch, steps), config, recorder)
    except StopIteration:
        pass
    recorder.folder.flush()
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
