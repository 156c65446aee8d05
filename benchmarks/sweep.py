"""Measures what a sweep costs per trial, beside the same runs trained one after the other by `pretrain`.

    python -m benchmarks.sweep [--settings 6] [--steps 20] [--workers 1]

Both sides train the same tiny settings on rendered scenes, one at a time, without rungs, in a process that has trained
one run already. Bare: `pretrain` in this process, with several workers on Ray Train. Sweep: jobs on a warm Ray Tune
actor, with several workers on Ray Train beside it. Ray's start is told apart. The parts are a job in its actor, and
what passes between two jobs: Tune, and the driver's record and MLflow.
"""

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from tests.toy_run import tiny_run, write_scenes
from tips_ray.config.load import override
from tips_ray.config.sweep import SweepConfig
from tips_ray.launch import cluster, pretrain
from tips_ray.launch.on_ranks import RankTrainer
from tuning.sweeps.executor import run_on_tune
from tuning.sweeps.queue import Sweep
from tuning.sweeps.run import run_sweep
from tuning.sweeps.space import random_values, run_of
from tuning.sweeps.trial import Job, Outcome


def main() -> None:
    """Print seconds per trial of both sides, and the overhead by part."""
    parser = argparse.ArgumentParser()
    for name, default in (("settings", 6), ("steps", 20), ("workers", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        count = options.settings
        config = _config(root, options.steps, count, options.workers)
        started = time.perf_counter()
        cluster.connect(options.workers + 1)
        ray_seconds = time.perf_counter() - started
        bare = _bare(config, root / "bare", count)
        ends = _sweep(config)
    trials = [outcome.seconds for _, outcome in ends[1:]]
    between = [end - before - outcome.seconds for (before, _), (end, outcome) in zip(ends, ends[1:], strict=False)]
    print(f"Ray starts in {ray_seconds:.1f} s")
    print(f"bare      {median(bare[1:]):6.2f} s a trial")
    print(f"sweep     {median(trials) + median(between):6.2f} s a trial")
    print(f"overhead  {median(trials) - median(bare[1:]):+6.2f} s in the trial, {median(between):.2f} s between trials")


def _config(root: Path, steps: int, settings: int, workers: int) -> SweepConfig:
    data = write_scenes(root / "scenes", 32)
    sizes = {"resources__workers": workers, "checkpoint_every_steps": 1_000}
    run = tiny_run(root, data, schedule__total_steps=steps, **sizes).model_dump(mode="json", exclude={"name"})
    space = {"objective.alpha": {"loguniform": [0.1, 10]}, "objective.beta": {"loguniform": [0.1, 10]}}
    scores = [{"metric": "loss/contrastive_web", "better": "lower"}]
    tree = {"name": "sweep", "storage": str(root), "run": run, "space": space, "scores": scores, "settings": settings}
    return override(SweepConfig, tree, {"scheduler": "none", "search": "random", "at_a_time": 1})


def _bare(config: SweepConfig, storage: Path, count: int) -> list[float]:
    found = []
    for number in range(count):
        run = run_of(config, {**random_values(config, number), "storage": str(storage)}, f"bare-{number}")
        started = time.perf_counter()
        pretrain(run, RankTrainer() if run.resources.workers == 1 else None)
        found.append(time.perf_counter() - started)
    return found


def _sweep(config: SweepConfig) -> list[tuple[float, Outcome]]:
    """When each job was written down, and how it ended."""
    ends: list[tuple[float, Outcome]] = []
    done = Sweep.done

    def noted(self: Sweep, job: Job, outcome: Outcome) -> None:
        done(self, job, outcome)
        ends.append((time.perf_counter(), outcome))

    Sweep.done = noted
    run_sweep(config, run_on_tune, lambda line: None)
    return ends


if __name__ == "__main__":
    main()
