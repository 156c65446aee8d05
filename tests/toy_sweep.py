"""A sweep over the tiny run, and an executor whose trials are arithmetic instead of training."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from toy_run import tiny_run

from tips_ray.config.load import override
from tips_ray.config.sweep import SweepConfig
from tuning.sweeps.queue import Places, Sweep
from tuning.sweeps.record import Record
from tuning.sweeps.space import run_of
from tuning.sweeps.trial import Job, Outcome

SPACE = {
    "objective.alpha": {"loguniform": [0.1, 10], "prior": 1},
    "objective.beta": {"loguniform": [0.1, 10], "prior": 2},
    "objective.student_temperature": {"choice": [0.05, 0.1]},
}
Measure = Callable[[Mapping[str, Any], int, int], float]


def tiny_sweep(storage: Path | str, source: str = "a", **values: Any) -> SweepConfig:
    """Six settings of the tiny run of 12 steps on one rank, with rungs at steps 4 and 8; `__` stands for the dot."""
    run = tiny_run(Path("unused"), source, resources__workers=1).model_dump(mode="json", exclude_none=True)
    tree = {
        "name": "tiny",
        "storage": str(storage),
        "run": {key: value for key, value in run.items() if key != "name"} | {"storage": str(storage)},
        "space": SPACE,
        "settings": 6,
        "keep": 2,
        "rungs": [4, 8],
        "scores": [{"metric": "loss/contrastive_web", "better": "lower"}],
    }
    return override(SweepConfig, tree, {key.replace("__", "."): value for key, value in values.items()})


def queue(config: SweepConfig, uri: str) -> Sweep:
    """The queue of a sweep in a folder, with what its record holds."""
    return Sweep(config, run_of(config, {}), Places(uri, {}, {}), Record(uri))


def bowl(values: Mapping[str, Any], seed: int, step: int) -> float:
    """Lowest at alpha 1.3, beta 3 and the lower temperature; falls with the steps; each seed adds something."""
    distance = abs(math.log(values["objective.alpha"] / 1.3)) + abs(math.log(values["objective.beta"] / 3))
    return distance + (values["objective.student_temperature"] == 0.1) + 10 / step + 0.1 * seed


def measured(sweep: Sweep, job: Job, measure: Measure = bowl) -> Outcome:
    """What the job would find."""
    return Outcome("scored", (measure(sweep.record.settings[job.setting].values, job.seed, job.step),), seconds=1.0)


def run_all(sweep: Sweep, measure: Measure = bowl, at_a_time: int = 1) -> list[tuple[int, int, int]]:
    """Run all jobs, the oldest ending first; returns setting, seed and step of each in the order of their ends."""
    running, ended = list[Job](), []
    while True:
        while len(running) < at_a_time and (job := sweep.next_job()):
            running.append(job)
        if not running:
            return ended
        job = running.pop(0)
        sweep.done(job, measured(sweep, job, measure))
        ended.append((job.setting, job.seed, job.step))
