"""Executes the jobs of a sweep: on Ray Tune, one Tune trial for each, or in this process, one after the other."""

import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import ray
from ray import tune
from ray.exceptions import RayError
from ray.tune import TuneError
from ray.tune.search import Searcher

from tips_ray.config.load import override
from tips_ray.config.run import RunConfig
from tips_ray.errors import RunFailedError, described
from tips_ray.launch import cluster
from tips_ray.launch.head import head_watched
from tips_ray.launch.stops import signals_stop
from tips_ray.launch.surroundings import KEPT_MEMORY
from tips_ray.train.adapter import require_ray
from tuning.sweeps.queue import Room, Sweep
from tuning.sweeps.trial import Job, Outcome, advance, is_on_rank

CURE = "once that is mended, the same command goes on with the sweep"
QUIET = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # a trial's paths are those of the driver
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_MAX_PENDING_TRIALS_PG": "1",  # one waits, so that an autoscaling cluster grows
    "RAY_AIR_NEW_OUTPUT": "0",
}
HARDLY_ANY = {"memory": 1.0}
"""Resources, one byte, of a Tune actor whose run trains on workers of its own: Tune must ask for something. A part of a
CPU would be missing where runs fit exactly, and their data streams would wait for ever."""


class Slots(NamedTuple):
    """Where trials run."""

    at_a_time: int
    need: dict[str, float]
    """Resources of the Tune actor of each trial."""
    room: Room | None
    """For trials with `resources.min_workers`."""


def run_here(sweep: Sweep) -> None:
    """Run all jobs in this process."""
    with signals_stop(_stopped(sweep)):
        while job := sweep.next_job():
            sweep.done(job, advance(job))


def _stopped(sweep: Sweep) -> Callable[[str], None]:
    return lambda by: sweep.stop(f"stopped by {by}")


def run_on_tune(sweep: Sweep) -> None:
    """Run all jobs as trials of Ray Tune, as many at a time as the cluster has room for.

    Raises:
        ValueError: not even one fits, or Ray cannot be started or joined.
        RunFailedError: Ray was lost.
    """
    require_ray()
    os.environ.update(QUIET)
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # a lost trial is told by us, without a traceback
    for name, value in KEPT_MEMORY.items():
        os.environ.setdefault(name, value)  # for the processes of a Ray that starts here
    is_guest = ray.is_initialized()
    slots = slots_of(sweep.base, sweep.config.at_a_time)
    sweep.room = slots.room
    notes = tempfile.mkdtemp(prefix="tune-")
    try:
        with head_watched(CURE), signals_stop(_stopped(sweep)), ExitStack() as within:  # Ray sets handlers as it starts
            _tuner(sweep, slots, notes, within).fit()
    except (RayError, TuneError) as error:
        raise RunFailedError(f"Ray Tune stopped: {described(error)}; {CURE}") from None
    finally:
        shutil.rmtree(notes, ignore_errors=True)
        if not is_guest:
            ray.shutdown()  # no trial outlives an interrupted driver


def _tuner(sweep: Sweep, slots: Slots, notes: str, within: ExitStack) -> tune.Tuner:
    return tune.Tuner(
        tune.with_resources(_advance, tune.PlacementGroupFactory([slots.need])),
        tune_config=tune.TuneConfig(
            search_alg=_Jobs(sweep, within),
            num_samples=-1,
            max_concurrent_trials=slots.at_a_time,
            reuse_actors=True,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(name="sweep", storage_path=notes, verbose=0),
    )


def _advance(config: dict[str, Any]) -> dict[str, Any]:
    """A Tune trial."""
    return {"outcome": advance(config["job"])}


class _Jobs(Searcher):
    """Tune's view of the queue. Tune keeps nothing of it: the record is the truth."""

    def __init__(self, sweep: Sweep, within: ExitStack) -> None:
        """`within` ends after `fit`."""
        super().__init__(metric="outcome", mode="max")
        self._sweep, self._given, self._within = sweep, dict[str, Job](), within
        self._listens = False

    def suggest(self, trial_id: str) -> Any:
        if not self._listens:  # Tune has set a handler of its own, which would leave trials without saving
            self._within.enter_context(signals_stop(lambda by: None))
            self._listens = True
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

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Tune writes it beside its notes, and nothing reads it

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


def slots_of(base: RunConfig, most: int | None) -> Slots:
    """How many trials run at a time, and with what; starts or joins Ray.

    Raises:
        ValueError: not even one fits, or this machine cannot be shared by so many.
    """
    whole = _of_trial(base)
    if cluster.address() is None and not ray.is_initialized():
        _require_cores((most or 1) * whole["CPU"], most or 1)
    cluster.connect((most or 1) * whole["CPU"])
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    places = nodes if is_on_rank(base) else [ray.cluster_resources()]  # one process cannot be spread over nodes
    needs = {kind: need for kind, need in whole.items() if need}
    fit = sum(min(int(place.get(kind, 0) // need) for kind, need in needs.items()) for place in places)
    if fit < 1:
        raise ValueError(_no_room(base, needs, places))
    at_a_time = min(fit, most or fit)
    if at_a_time < (most or 0):
        print(f"room       {at_a_time} of {most} trials at a time fit now; others wait", flush=True)
    if is_on_rank(base):
        return Slots(most or fit, needs, None)  # those beyond what fits wait, which asks an autoscaler for room
    return Slots(at_a_time, HARDLY_ANY, _room(base, at_a_time) if base.resources.min_workers else None)


def _room(base: RunConfig, trials: int) -> Room:
    resources, have = base.resources, ray.cluster_resources()
    cpus = (have.get("CPU", 0) - trials * base.cpus_beside_workers) / max(resources.cpus_per_worker, 0.001)
    gpus = have.get("GPU", 0) / resources.gpus_per_worker if resources.gpus_per_worker else cpus
    return Room(trials, int(min(cpus, gpus)))


def _no_room(base: RunConfig, needs: Mapping[str, float], places: Sequence[Mapping[str, float]]) -> str:
    wanted = " and ".join(f"{need:g} {cluster.UNITS.get(kind, kind)}" for kind, need in needs.items())
    have = "; ".join(", ".join(f"{place.get(kind, 0):g} {kind}" for kind in needs) for place in places)
    where = "no node has" if is_on_rank(base) else "the cluster does not have"
    return (
        f"run.resources: a trial needs {wanted}, which {where} ({have}): lower workers, cpus_per_worker or "
        "gpus_per_worker, or add machines"
    )


def _of_trial(base: RunConfig) -> dict[str, float]:
    """Resources of a whole trial, of one with several numbers of workers with the fewest.

    The data processes of a trial that trains in its Tune actor share its CPUs.
    """
    resources = base.resources
    if is_on_rank(base):
        return {"CPU": max(resources.cpus_per_worker, 0.001), "GPU": resources.gpus_per_worker}
    fewest = override(RunConfig, base.model_dump(mode="json"), {"resources.workers": base.worker_counts[0]})
    return {"CPU": cluster.cpus_needed(fewest), "GPU": cluster.gpus_needed(fewest)}


def _require_cores(cpus: float, trials: int) -> None:
    if cpus > cluster.CPUS_PER_CORE * cluster.cores():
        raise ValueError(
            f"at_a_time ({trials}): so many trials need {cpus:g} CPUs, and this machine has {cluster.cores()} cores, "
            f"which may be shared {cluster.CPUS_PER_CORE} times: lower it, or set RAY_ADDRESS to a cluster"
        )
