"""A training step's time while a checkpoint is evaluated on another core, beside the step alone, pair by pair.

    python -m benchmarks.beside_evaluation [--steps 20] [--pairs 30]

The evaluation runs in a process of its own, as Ray runs it, over and over: the suite of scenes that docs/in-training.md
shows, on a checkpoint of this benchmark. It is stopped (SIGSTOP) while the step is measured alone. Training and
evaluation have one thread and one core each, so that what is measured is what they share on one machine: memory,
cache, disk. On machines of its own an evaluation shares storage alone: the training ranks run none of its code. Bar:
the upper end of the 95 % interval of the ratio is at most 1.02. Processor time is printed beside the time that passed,
because other programs disturb it less.
"""

import argparse
import itertools
import multiprocessing
import os
import signal
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from benchmarks.loop import run_config
from benchmarks.tracking import Silent, tell_ratio
from benchmarks.train_step import random_batch
from tests.toy_run import tiny_run, toy_job, write_scenes
from tips_ray.launch import pretrain
from tips_ray.launch.checkpoint_evaluation import evaluate_checkpoint
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.checkpoint import newest_checkpoint
from tips_ray.runs.run import Run
from tips_ray.train.loop import train
from tips_ray.train.state import new_state

SUITE = {
    "data": {"scenes": {"kind": "scenes", "train": 128, "test": 128}},
    "tasks": {
        "retrieval": {"kind": "retrieval", "data": "scenes"},
        "segmentation": {"kind": "segmentation", "data": "scenes", "train_size_px": 28, "probe": {"steps": 50}},
    },
}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the ratios of both clocks with their intervals."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.beside_evaluation", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    for name, default in (("batch", 32), ("crops", 6), ("steps", 20), ("pairs", 30)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args(arguments)
    torch.set_num_threads(1)
    own, other = sorted(os.sched_getaffinity(0))[:2]
    with tempfile.TemporaryDirectory() as folder:
        run = _evaluated_run(Path(folder))
        context = multiprocessing.get_context("spawn")
        counted = context.Value("i", 0)
        evaluation = context.Process(target=_evaluate_for_ever, args=(run, other, counted), daemon=True)
        evaluation.start()
        os.sched_setaffinity(0, {own})
        try:
            pairs = _pairs(args, int(evaluation.pid or 0), counted)
        finally:
            evaluation.kill()
            evaluation.join()
    print(f"{counted.value} evaluations were made meanwhile")
    for clock, name in enumerate(("time that passed", "processor time")):
        tell_ratio(f"{name}, beside an evaluation / alone", [beside[clock] / alone[clock] for beside, alone in pairs])


def _evaluated_run(place: Path) -> Run:
    """A run with one checkpoint."""
    keys: dict[str, Any] = {"evaluation": {"suite": SUITE, "pictures": 2}, "evaluate_every_steps": 4}
    config = tiny_run(place / "runs", write_scenes(place / "scenes", 16), schedule__total_steps=4, **keys)
    folder = pretrain(config, RankTrainer())
    return toy_job(config, folder)


def _evaluate_for_ever(run: Run, core: int, counted: Any) -> None:
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    checkpoint = newest_checkpoint(run.checkpoints_uri)
    assert checkpoint is not None
    while True:
        evaluate_checkpoint(run, checkpoint)
        counted.value += 1


def _pairs(args: argparse.Namespace, evaluation: int, counted: Any) -> list[list[tuple[float, float]]]:
    """Seconds that passed and processor seconds of the steps beside an evaluation, and alone, for each pair."""
    config = run_config("tiny", args.batch).model_copy(update={"checkpoint_every_minutes": None})
    batch, state = random_batch(config, args.batch, args.crops), new_state(config)
    recorder: Any = Silent()

    def spent(is_beside: bool) -> tuple[float, float]:
        os.kill(evaluation, signal.SIGCONT if is_beside else signal.SIGSTOP)
        passed, used = time.perf_counter(), time.thread_time()
        with suppress(StopIteration):
            train(state, itertools.repeat([batch], args.steps), config, recorder)
        return time.perf_counter() - passed, time.thread_time() - used

    while not counted.value:
        time.sleep(0.5)  # its imports are over
    spent(False)
    pairs = []
    for number in range(args.pairs):
        sides = {is_beside: spent(is_beside) for is_beside in ((True, False) if number % 2 else (False, True))}
        pairs.append([sides[True], sides[False]])
        print(f"pair {number + 1}  beside {sides[True][0]:.2f} s, alone {sides[False][0]:.2f} s", flush=True)
    return pairs


if __name__ == "__main__":
    main()
