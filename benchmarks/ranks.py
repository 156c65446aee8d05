"""Compares two pinned gloo ranks with one: images/s with the same images per rank, and the efficiency.

    python -m benchmarks.ranks [--variant small] [--batch 4] [--steps 3] [--rounds 5] [--replicas 1]

Every rank is a process with one thread, pinned to a separate core. `1 rank` is alone on the first core, `2 ranks` are
on the first two. Both take the steps of a run, sharded with FSDP2 (one rank shards among itself). They take turns.
Efficiency is images/s of two over twice those of one; the median of the rounds counts. Cores that share clock, caches
or memory bandwidth also slow each other down: `no words`, two ranks in separate groups that exchange nothing, shows how
much.
"""

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
import torch.distributed as dist

from benchmarks.loop import CPU, run_config
from benchmarks.train_step import random_batch
from tips_ray.config import RunConfig, override
from tips_ray.train.step import train_step
from tips_ray.train.worker_loop import prepared_state

WARM_STEPS = 2
TIMEOUT_SECONDS = 170


def main(arguments: Sequence[str] | None = None) -> None:
    """Print images/s of each round, and the median efficiencies."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ranks", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--variant", choices=("tiny", "small"), default="small")
    for name, default in (("batch", 4), ("crops", 6), ("steps", 3), ("rounds", 5), ("replicas", 1)):
        parser.add_argument(f"--{name}", type=int, default=default, help="images per rank" * (name == "batch"))
    args = parser.parse_args(arguments)
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two ranks need two cores")
    efficiencies, silent = _measured(args, cores)
    print(f"efficiency of 2 ranks  {_shown(efficiencies)}; bar: at least 0.85")
    print(f"no words               {_shown(silent)}: what two busy cores cost here without any exchange")


def _measured(args: argparse.Namespace, cores: list[int]) -> tuple[list[float], list[float]]:
    """Efficiency of each round, with and without exchange; the processes live through all rounds."""
    efficiencies, silent = [], []
    with _Group(args, cores[:1]) as one, _Group(args, cores) as two, _Group(args, cores[1:]) as other:
        for number in range(args.rounds):
            alone = one.rates()[0]
            pair = two.rates()[0]
            both = min(_together(one, other))
            efficiencies.append(pair / alone)
            silent.append(both / alone)
            print(f"round {number + 1}  1 rank {alone:.1f}, 2 ranks {2 * pair:.1f} images/s", flush=True)
    return efficiencies, silent


def _together(one: "_Group", other: "_Group") -> list[float]:
    one.start()
    other.start()
    return one.wait() + other.wait()


def _shown(values: list[float]) -> str:
    return f"{median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


class _Group:
    """Rank processes that sleep between rounds; asleep they cost nothing."""

    def __init__(self, args: argparse.Namespace, cores: list[int]) -> None:
        self._folder = tempfile.TemporaryDirectory()
        context, pipes = multiprocessing.get_context("spawn"), [multiprocessing.Pipe() for _ in cores]
        self._pipes = [own for own, _ in pipes]
        self._processes = [
            context.Process(target=_rank, args=(args, rank, cores, self._folder.name, pipes[rank][1]), daemon=True)
            for rank in range(len(cores))
        ]

    def __enter__(self) -> "_Group":
        for process in self._processes:
            process.start()
        self.wait()  # until all are warm
        return self

    def __exit__(self, *error: object) -> None:
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def rates(self) -> list[float]:
        """Images/s of each rank in one round."""
        self.start()
        return self.wait()

    def start(self) -> None:
        for pipe in self._pipes:
            pipe.send("go")

    def wait(self) -> list[float]:
        for pipe in self._pipes:
            if not pipe.poll(TIMEOUT_SECONDS):
                raise SystemExit("a rank does not answer: use a smaller --variant, --batch or --steps")
        return [pipe.recv() for pipe in self._pipes]


def _rank(args: argparse.Namespace, rank: int, cores: list[int], folder: str, pipe: Any) -> None:
    os.sched_setaffinity(0, {cores[rank]})
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=len(cores))
    config = _shared(run_config(args.variant, args.batch), len(cores), min(args.replicas, len(cores)))
    state, batch = prepared_state(config, CPU), random_batch(config, args.batch, args.crops)
    steps = WARM_STEPS
    while True:
        started = time.perf_counter()
        for _ in range(steps):
            train_step(state, [batch], config)
        pipe.send(steps * args.batch / (time.perf_counter() - started))
        pipe.recv()
        steps = args.steps


def _shared(config: RunConfig, ranks: int, replicas: int) -> RunConfig:
    keys = {"global_batch_images": ranks * config.global_batch_images, "resources.workers": ranks}
    keys["resources.replicas"] = replicas
    return override(RunConfig, config.model_dump(mode="json"), keys)


if __name__ == "__main__":
    main()
