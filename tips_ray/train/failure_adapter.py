"""What is counted as a failure of Ray Train's workers, and how it is told: the policy below `adapter`, and causes."""

from typing import Any

import ray.exceptions
from ray.exceptions import RayTaskError
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError

from tips_ray import storage
from tips_ray.errors import is_echo, root_cause
from tips_ray.runs.checkpoint import checkpoints_of, newest_step
from tips_ray.runs.folder import RunFolder, is_final
from tips_ray.train.graceful_stop import PlannedStop, StuckStop

MOST_CHARACTERS = 200
"""Of an error in a cause."""


class CountedFailures(DefaultFailurePolicy):
    """A planned stop is no failure, and a checkpoint since the last failure makes that one forgotten."""

    def __init__(self, failure_config: Any, run_uri: str) -> None:
        super().__init__(failure_config)
        self.run_uri, self._saved_step = run_uri, -1
        self._known_failures = len(RunFolder(run_uri).final_failures())  # of earlier drivers

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Ray would start workers that die in their start again for ever, and say nothing."""
        started = failure_of_start(training_failed_error)
        if started:
            training_failed_error = WorkerGroupError(str(started), {0: started})  # which one is not known
        if not isinstance(training_failed_error, (WorkerGroupError, PreemptionError)):
            return super().make_decision(training_failed_error)
        if self._is_final(training_failed_error):
            return FailureDecision.RAISE
        reason = planned_reason(training_failed_error)
        decision = FailureDecision.RETRY if reason else self._counted(training_failed_error)
        if decision == FailureDecision.RETRY and not self._has_final_event():
            cause = reason or (in_start(started) if started else cause_of(training_failed_error))
            RunFolder(self.run_uri).try_event(
                "stop", None, cause=cause, planned=bool(reason) and not is_stuck(training_failed_error)
            )
        return decision

    def _is_final(self, error: TrainingFailedError) -> bool:
        """It would come again: rank 0 or the stream has it. There is an event of it then."""
        failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        common = {rank: e for rank, e in failures.items() if rank == 0 or isinstance(unwrapped(e), RayTaskError)}
        final = next(filter(is_final, map(root_cause, common.values())), None)
        if final is not None and not self._has_final_event():
            what = {"error": str(final), "type": type(final).__name__, "is_final": True}
            RunFolder(self.run_uri).try_event("failure", None, rank=min(common), **what)
        return final is not None

    def _has_final_event(self) -> bool:
        """Also where Ray saw another rank first, which noticed that one is gone: `RestOfRun` tells the cause then."""
        try:
            return len(RunFolder(self.run_uri).final_failures()) > self._known_failures
        except storage.StorageError:
            return False

    def _counted(self, error: TrainingFailedError) -> FailureDecision:
        saved = newest_step(checkpoints_of(self.run_uri))
        if saved > self._saved_step:
            self._worker_group_failures, self._saved_step = 0, saved
        return super().make_decision(error)


def planned_reason(error: TrainingFailedError) -> str:
    """Empty where a worker failed."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next((str(failure) for failure in failures if isinstance(failure, PlannedStop)), "")


def unwrapped(failure: BaseException) -> BaseException:
    """What the worker raised."""
    return getattr(failure, "_base_exc", failure)


def is_stuck(error: TrainingFailedError) -> bool:
    """The group did not leave by itself."""
    return isinstance(error, WorkerGroupError) and any(isinstance(e, StuckStop) for e in error.worker_failures.values())


def failure_of_start(error: TrainingFailedError) -> Exception | None:
    """Of what a worker died before it trained, None where none did; the driver, which gets no causes, is told too."""
    failure = getattr(error, "controller_failure", None)
    if isinstance(failure, WorkerGroupStartupFailedError):
        cause = failure.__cause__ or failure
        failure.args = (in_start(cause),)
        return cause if isinstance(cause, Exception) else failure
    return failure if isinstance(failure, ray.exceptions.RayActorError) else None


def in_start(failure: BaseException) -> str:
    """One line."""
    return f"a worker died while it started: {_shortened(failure)}"


def cause_of(error: TrainingFailedError) -> str:
    """One line: a worker that is gone before what the others say of it."""
    if isinstance(error, PreemptionError):
        return "a node was taken away before its workers had saved"
    assert isinstance(error, WorkerGroupError)
    failures = sorted(error.worker_failures.items())
    lost = [rank for rank, failure in failures if isinstance(failure, WorkerHealthCheckFailedError)]
    if lost:
        return f"lost: rank {', '.join(map(str, lost))}"
    rank, failure = next((one for one in failures if not is_echo(one[1])), failures[0])
    if is_echo(failure):
        return f"lost: a worker, as rank {rank} noticed"
    cause = root_cause(failure)
    return f"rank {rank}: {type(cause).__name__}: {_shortened(cause)}"


def _shortened(error: BaseException) -> str:
    return " ".join(str(error).split())[:MOST_CHARACTERS]
