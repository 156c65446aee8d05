"""A sweep: what its trials do next, by the record, and what becomes of their results. Whatever executes asks here."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tips_ray import storage
from tips_ray.config.run import RunConfig
from tips_ray.config.sweep import SweepConfig
from tips_ray.errors import RunFailedError
from tips_ray.runs.stop import ask_to_stop
from tuning.sweeps.population import next_generation
from tuning.sweeps.record import ADDED, MOST_FAILURES, Record, Setting
from tuning.sweeps.rungs import Rungs
from tuning.sweeps.search import next_values
from tuning.sweeps.space import CHANGES, lies_in, run_of, settings_of
from tuning.sweeps.trial import Job, Outcome

MOST_GIVEN_UP = 3
"""Settings given up by failures, before any score, after which the sweep fails: the cause is not their values."""


@dataclass(frozen=True)
class Places:
    """Where a sweep keeps its things, and what all its trials share."""

    uri: str
    """The sweep's folder."""
    shared: Mapping[str, Any]
    """Dotted keys of every trial's run: storage, vocabulary, captions, tracking."""
    tags: Mapping[str, str]
    """Tags of every trial's MLflow run."""

    @property
    def runs(self) -> str:
        return storage.join(self.uri, "runs")


class Room(NamedTuple):
    """Room of a cluster for trials with several numbers of workers."""

    trials: int
    """At most so many at a time."""
    workers: int
    """Of all of them together."""


class Sweep:
    """The queue of a sweep's jobs. Not for several threads at once."""

    def __init__(
        self,
        config: SweepConfig,
        base: RunConfig,
        places: Places,
        record: Record,
        told: Callable[[Job, Outcome], None] = lambda job, outcome: None,
    ) -> None:
        """
        Args:
            config: of the sweep.
            base: the run that all settings start from.
            places: of the sweep, prepared.
            record: what was done so far.
            told: gets each job that has ended, once that is written down.
        """
        self.config, self.base, self.places, self.record, self.told = config, base, places, record, told
        self.rungs = Rungs(config, base)
        self._lies_in: dict[int, bool] = {}
        """Number of a setting -> whether it is one of the space."""
        self.running: dict[tuple[int, int], Job] = {}
        """By setting and seed."""
        self.stops_because = ""
        """Why no further job is given; empty: the sweep goes on."""
        self.is_asked_to_stop = False
        self.failure: RunFailedError | None = None
        """Why the sweep cannot go on."""
        self.room: Room | None = None
        """Where trials have `resources.min_workers`: they share it. None: each has `resources.workers`."""

    @property
    def settings(self) -> list[Setting]:
        """Settings of the space, in the order in which they were proposed; an extended sweep may have others."""
        every = self.record.settings
        self._lies_in |= {new: lies_in(self.config, every[new].values) for new in every.keys() - self._lies_in.keys()}
        return [one for one in every.values() if self._lies_in[one.number]]

    def next_job(self) -> Job | None:
        """The next job, which is then running; None: there is none now, or none at all if nothing is running."""
        while not self.stops_because:
            if job := self._due():
                self.running[job.setting, job.seed] = job
                return job
            if used := self._budget_used():
                self.stops_because = used
            elif not (self._granted() or self._proposed() or self._at_last()):
                return None
        return None

    def done(self, job: Job, outcome: Outcome) -> None:
        """Write down how a job ended."""
        del self.running[job.setting, job.seed]
        setting = self.record.settings[job.setting]
        if outcome.kind == "scored":
            self._add_scores(setting, job, outcome)
        elif outcome.kind == "violated":
            self.record.add_violation(setting, job.seed, outcome.why, outcome.seconds, _gpus(job))
            self.record.end(setting, f"seed {job.seed}: {outcome.why}")
        elif outcome.kind == "unscorable":
            self.stops_because = outcome.why
            self.failure = RunFailedError(f"scores: {outcome.why}")
        elif outcome.kind == "failed":
            self.record.add_failure(setting, job.seed, outcome.why, outcome.seconds, _gpus(job))
            if len(setting.trial(job.seed).failures) >= MOST_FAILURES:
                self._give_up(
                    setting, f"seed {job.seed} failed {MOST_FAILURES} times, the last time since {outcome.why}"
                )
        elif not self.stops_because:
            self.record.end(setting, f"seed {job.seed}: {outcome.why}")
        self.told(job, outcome)

    def _add_scores(self, setting: Setting, job: Job, outcome: Outcome) -> None:
        self.record.add_scores(setting, job.seed, job.step, outcome.scores, outcome.seconds, _gpus(job))
        if None in setting.trial(job.seed).scores[job.step]:
            why = f"a score at step {job.step} is not a finite number"
            self.record.add_violation(setting, job.seed, why, 0.0, 0.0)
            self.record.end(setting, f"seed {job.seed}: {why}")

    def _give_up(self, setting: Setting, why: str) -> None:
        self.record.give_up(setting, why)
        trials = [trial for one in self.record.settings.values() for trial in one.trials.values()]
        lost = [one for one in self.record.settings.values() if one.is_given_up]
        if len(lost) >= MOST_GIVEN_UP and not any(trial.scores for trial in trials):
            self.stops_because = f"{len(lost)} settings failed and none has a score"
            self.failure = RunFailedError(f"{self.stops_because}; setting {setting.number}: {why}")

    def stop(self, why: str) -> None:
        """Give no further job, and ask those that run to save and leave."""
        self.stops_because, self.is_asked_to_stop = why, True
        self.ask_to_leave()

    def ask_to_leave(self) -> None:
        """Ask the running trials to save and leave; call it again for those that have only begun."""
        why = self.stops_because
        for job in list(self.running.values()):
            try:
                ask_to_stop(job.run_uri, f"the sweep, which was {why.removeprefix('paused by ')}", kind="pause")
            except (ValueError, OSError):  # it has not begun, has ended, or its storage is away
                continue

    def _due(self) -> Job | None:
        """A trial that may train on: those that are farthest first, so that decisions about them come soon."""
        order = sorted(self.settings, key=lambda one: -one.granted)
        for setting in order:
            if setting.ended:
                continue
            for seed in self.rungs.seeds:
                step = self.rungs.next_step(setting, seed)
                if step is not None and (setting.number, seed) not in self.running:
                    return self.job(setting, seed, step)
        return None

    def job(self, setting: Setting, seed: int, step: int) -> Job:
        """The job that brings a trial to a rung."""
        name, places = trial_name(setting.number, seed), self.places
        shared = {**places.shared, "storage": places.runs, **self._share()}
        run = run_of(self.config, {**setting.values, **shared}, name, seed)
        local = storage.is_local(places.uri)
        return Job(
            setting.number,
            seed,
            step,
            run,
            self.config.scores,
            self.config.suite,
            results_uri=storage.join(places.uri, "evaluation", name, f"step-{step:08d}"),
            log=storage.join(places.uri, "logs", f"{name}.log") if local else None,
            tags={**places.tags, "setting": str(setting.number), "proposed_by": setting.by},
        )

    def _share(self) -> dict[str, Any]:
        """Workers of a trial that starts now: an equal part of the free room among those that may start with it.

        The last trials of a sweep get more of it, each from its next rung on. Fewer workers take more passes, not
        larger ones.
        """
        if self.room is None:
            return {}
        free = self.room.workers - sum(job.run.resources.workers for job in self.running.values())
        beside = min(self.room.trials - len(self.running), self._waiting())
        share = free // max(beside, 1)
        counts, images = self.base.worker_counts, self.base.micro_batch_images
        workers = max((count for count in counts if count <= share), default=counts[0])
        return {"resources.workers": workers, "micro_batch_images": images or self.base.images_per_pass}

    def _waiting(self) -> int:
        """Trials that may train now and do not, and those of settings that are left to propose."""
        left = max(settings_of(self.config) - len(self._proposals()), 0) * len(self.rungs.seeds)
        open_ones = [setting for setting in self.settings if not setting.ended]
        due = [(one.number, seed) for one in open_ones for seed in self.rungs.seeds if self.rungs.next_step(one, seed)]
        return left + sum(trial not in self.running for trial in due)

    def _granted(self, is_last_call: bool = False) -> bool:
        """Whether a decision was made about settings that were compared."""
        grant = self.rungs.next_grant(self.settings, is_last_call)
        if grant is None:
            return False
        if grant.step is None:
            self.record.end(grant.setting, grant.why)
        else:
            self.record.grant(grant.setting, grant.step)
        return True

    def _at_last(self) -> bool:
        """Whether a decision was made that needs all settings, with nothing left that trains."""
        if self.running:
            return False
        if self.config.scheduler == "pbt":
            return next_generation(self.config, self.rungs, self.settings, self.record, self.run_uri)
        return self._granted(is_last_call=True)

    def run_uri(self, setting: int) -> str:
        """Run folder of a setting's only trial, in population-based training."""
        return storage.join(self.places.runs, trial_name(setting, self.rungs.seeds[0]))

    def _proposed(self) -> bool:
        """Whether a new setting was made."""
        settings = [one for one in self.settings if CHANGES not in one.values]
        if self.config.settings is not None and len(self._proposals()) >= self.config.settings:
            return False
        found = next_values(self.config, self.rungs, settings, self.record.earlier)
        if found is None:
            return False
        self.record.add_setting(*found, self.rungs.first_step())
        return True

    def _proposals(self) -> list[Setting]:
        return [one for one in self.settings if CHANGES not in one.values and one.by != ADDED]

    def _budget_used(self) -> str:
        """Why the budget ends the sweep; empty: it does not."""
        budget, hours = self.config.budget, self.record.seconds / 3600
        gpu_hours = self.record.gpu_seconds / 3600
        if budget.trial_hours is not None and hours >= budget.trial_hours:
            return f"budget.trial_hours ({budget.trial_hours:g}) is used: {hours:.2f}"
        if budget.gpu_hours is not None and gpu_hours >= budget.gpu_hours:
            return f"budget.gpu_hours ({budget.gpu_hours:g}) is used: {gpu_hours:.2f}"
        return ""


def _gpus(job: Job) -> float:
    return job.run.resources.workers * job.run.resources.gpus_per_worker


def trial_name(setting: int, seed: int) -> str:
    """Name of a trial's run."""
    return f"setting-{setting:04d}-seed-{seed}"
