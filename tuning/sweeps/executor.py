"""Executes the jobs of a sweep: on Ray Tune, one Tune trial for each, or in this process, one after the other."""

import os
import shutil
import tempfile
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from tips_ray.config.run import RunConfig
from tips_ray.launch import cluster
from tips_ray.train.adapter import require_ray
from tuning.ablations.chains import KEPT_MEMORY
from tuning.sweeps.queue import Sweep
from tuning.sweeps.trial import Job, Outcome, advance, is_on_rank

QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial's paths are those of the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # one waits, so that an autoscaling cluster grows
    "RAY_AIR_NEW_OUTPUT": "0",
}


def run_here(sweep: Sweep) -> None:
    """Run all jobs in this process."""
    while job := sweep.next_job():
        sweep.done(job, advance(job))


def run_on_tune(sweep: Sweep) -> None:
    """Run all jobs as trials of Ray Tune, as many at a time as the cluster has room for."""
    require_ray()
    os.environ.update(QUIET)
    for name, value in KEPT_MEMORY.items():
        os.environ.setdefault(name, value)  # for the processes of a Ray that starts here
    at_a_time, need = room(sweep.base, sweep.config.at_a_time)
    notes = tempfile.mkdtemp(prefix="tune-")
    tuner = tune.Tuner(
        tune.with_resources(_advance, tune.PlacementGroupFactory([need])),
        tune_config=tune.TuneConfig(
            search_alg=_Jobs(sweep),
            num_samples=-1,
            max_concurrent_trials=at_a_time,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=notes, verbose=0),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def _advance(config: dict[str, Any]) -> dict[str, Any]:
    """A Tune trial."""
    return {"outcome": advance(config["job"])}


class _Jobs(Searcher):
    """Tune's view of the queue. Tune keeps nothing of it: the record is the truth."""

    def __init__(self, sweep: Sweep) -> None:
        super().__init__(metric="outcome", mode="max")
        self._sweep, self._given = sweep, dict[str, Job]()

    def suggest(self, trial_id: str) -> Any:
        job = self._sweep.next_job()
        if job is None:
            return None if self._sweep.running else Searcher.FINISHED
        self._given[trial_id] = job
        return {"job": job}

    def on_trial_complete(self, trial_id: str, result: dict | None = None, error: bool = False) -> None:
        job = self._given.pop(trial_id, None)
        if job:
            outcome = result.get("outcome") if result else None
            self._sweep.done(job, outcome or Outcome("failed", why="its process was lost"))

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


def room(base: RunConfig, most: int | None) -> tuple[int, dict[str, float]]:
    """Trials that fit at a time, and the resources of the Tune actor of each; starts or joins Ray.

    Raises:
        ValueError: not even one fits.
    """
    own = _of_rank(base) if is_on_rank(base) else {"CPU": 0.001}
    whole = own if is_on_rank(base) else {"CPU": cluster.cpus_needed(base), "GPU": cluster.gpus_needed(base)}
    cluster.connect((most or 1) * whole["CPU"])
    import ray

    have = ray.cluster_resources()
    kinds = [kind for kind, need in whole.items() if need]
    fit = min(int(have.get(kind, 0) // whole[kind]) for kind in kinds)
    if fit < 1:
        kind = min(kinds, key=lambda one: have.get(one, 0) / whole[one])
        raise ValueError(
            f"run.resources: a trial needs {whole[kind]:g} {cluster.UNITS.get(kind, kind)}, the cluster has "
            f"{have.get(kind, 0):g}: lower workers, cpus_per_worker or gpus_per_worker, or add machines"
        )
    return min(fit, most or fit), {kind: amount for kind, amount in own.items() if amount}


def _of_rank(base: RunConfig) -> dict[str, float]:
    """Resources of a trial in one process; its data processes share its CPUs."""
    return {"CPU": max(base.resources.cpus_per_worker, 0.001), "GPU": base.resources.gpus_per_worker}
