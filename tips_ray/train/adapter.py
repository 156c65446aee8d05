"""Ray Train's internals: when the worker group changes, what counts as its failure, and how that is reported.

Ray's own policy tears workers down at any moment and computes the steps since the last checkpoint again. Ours asks the
ranks to leave: they save, raise `GracefulStop`, and the group starts again with the available workers. A drained node
asks them in the same way.
"""

import os
import signal
import time
from collections.abc import Collection
from typing import Any

import ray
import ray._private.state
import ray.exceptions
from ray.exceptions import RayTaskError
from ray.train.torch import TorchTrainer
from ray.train.v2._internal import constants
from ray.train.v2._internal.exceptions import WorkerGroupStartupFailedError, WorkerHealthCheckFailedError
from ray.train.v2._internal.execution.context import get_train_context
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision
from ray.train.v2._internal.execution.scaling_policy import ElasticScalingPolicy, NoopDecision, ResizeDecision
from ray.train.v2.api.exceptions import PreemptionError, TrainingFailedError, WorkerGroupError

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.errors import is_echo, is_final, root_cause
from tips_ray.ray_data_adapter import RENEWED_SECONDS
from tips_ray.runs.checkpoint import DamagedCheckpointError
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import LeaseLostError
from tips_ray.runs.restart import last_step
from tips_ray.runs.run import Run
from tips_ray.runs.stop import stop_asked
from tips_ray.train import graceful_stop
from tips_ray.train.graceful_stop import GracefulStop, Paused, StuckStop

WRITTEN_FOR = "2.60."
ABORT_SECONDS = 15
"""Longest time that Ctrl-C waits for the workers to stop."""
MOST_CHARACTERS = 200
"""Longest error text in a cause."""
BELOW_SECONDS = 3 * RENEWED_SECONDS
"""Time without room for the fewest workers that stops a group; a restarted coordinator knows of no room at first."""


def require_ray() -> None:
    """
    Raises:
        ValueError: the installed Ray is not the version whose internals we know.
    """
    if not ray.__version__.startswith(WRITTEN_FOR):
        raise ValueError(
            f"ray {ray.__version__} is installed, tips_ray/train/adapter.py knows the internals of {WRITTEN_FOR}x: "
            f"pip install 'ray[train,data,tune,default]=={WRITTEN_FOR}*'"
        )


def shorten_waits(config: RunConfig) -> None:
    """Set Ray's timers, which cause most of an outage; call it before `fit`. Values that the user has set stay."""
    resources = config.resources
    seconds = {
        constants.HEALTH_CHECK_INTERVAL_S_ENV_VAR: resources.poll_seconds,
        constants.PREEMPTION_POLL_INTERVAL_S_ENV_VAR: resources.poll_seconds,
        constants.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR: resources.placement_seconds,
    }
    for name, value in seconds.items():
        os.environ.setdefault(name, str(value))


class ElasticTrainer(TorchTrainer):
    """A `TorchTrainer` with our two policies; its `ScalingConfig` says whether the number of workers is fixed."""

    def __init__(self, *args: Any, run: Run, **kwargs: Any) -> None:
        require_ray()
        super().__init__(*args, **kwargs)
        self._run = run

    def _register_sigint_handler(self, controller: Any) -> None:
        """Handle Ctrl-C as Ray does, but kill a controller that does not react because it waits for nodes."""

        def end(signal_number: int, frame: Any) -> None:
            try:
                ray.get(controller.abort.remote(), timeout=ABORT_SECONDS)
            except (ray.exceptions.RayActorError, ray.exceptions.GetTimeoutError):
                ray.kill(controller)
            raise KeyboardInterrupt

        signal.signal(signal.SIGINT, end)

    def _initialize_and_run_controller(self, **policies: Any) -> Any:
        policies["failure_policy"] = CountedFailures(
            self.run_config.failure_config, self._run.uri, self._run.generation
        )
        if self.scaling_config.elasticity_enabled:
            policies["scaling_policy"] = GracefulScaling(self.scaling_config, self._run.config, self._run.uri)
        return super()._initialize_and_run_controller(**policies)


class GracefulScaling(ElasticScalingPolicy):
    """Use as many workers as have room and the global batch allows; a running group is asked to leave first."""

    def __init__(self, scaling_config: Any, config: RunConfig, run_uri: str) -> None:
        super().__init__(scaling_config)
        self.config, self.run_uri = config, run_uri
        self._last_event: dict[str, Any] = {}
        self._room = 0
        self._below: tuple[float, float] | None = None
        """Start time of the group that has too little room, and when that began."""
        self._asked: tuple[float, float] | None = None
        """Start time of the group that was asked to leave, and when it was asked."""

    def _maybe_send_resource_request(self) -> None:
        """Repeat requests more often than Ray, because our coordinator forgets them sooner."""
        assert self._coordinator_client is not None
        if time.monotonic() - self._coordinator_client._latest_autoscaling_request_time > RENEWED_SECONDS:
            self._send_resource_request()

    def make_decision_for_running_worker_group(self, worker_group_state: Any, worker_group_status: Any) -> Any:
        """Unlike Ray, also stop a group when the fewest workers have no room: the data stream may be what lacks it."""
        decision = super().make_decision_for_running_worker_group(worker_group_state, worker_group_status)
        workers, started = worker_group_state.workers, worker_group_state.start_time
        if self._stays_below(started):
            reason = f"room for {self._room} workers, at least {self.config.worker_counts[0]} must train"
        elif isinstance(decision, ResizeDecision):
            reason = f"room for {decision.num_workers} workers instead of {len(workers)}"
        else:
            return decision
        is_drained = any(worker.metadata.node_id in draining_nodes() for worker in workers)
        if self._room < len(workers) and not is_drained and self._is_stuck(started):
            cause = f"{reason}, and they do not leave"
            raise WorkerGroupError(cause, {0: StuckStop(cause)})  # Ray asks for room before it starts a group again
        for worker in workers:
            worker.execute_async(graceful_stop.ask, f"drain: {reason}" if is_drained else reason)
        return NoopDecision()

    def _stays_below(self, started: float) -> bool:
        """For `BELOW_SECONDS` there has been room for fewer workers than must train."""
        if self._latest_reserved_resources is None or self._room >= self.config.worker_counts[0]:
            self._below = None
            return False
        self._latest_monitor_time = float("-inf")  # makes Ray's policy look again at the next poll
        if self._below is None or self._below[0] != started:
            self._below = started, time.monotonic()
        return time.monotonic() - self._below[1] > BELOW_SECONDS

    def _is_stuck(self, started: float) -> bool:
        """The group was asked to leave `leave_seconds` ago; data that it waits for may have been lost with a node."""
        if self._asked is None or self._asked[0] != started:
            self._asked = started, time.monotonic()
        return time.monotonic() - self._asked[1] > self.config.resources.leave_seconds

    def make_decision_for_non_running_worker_group(self) -> Any:
        decision = super().make_decision_for_non_running_worker_group()
        if isinstance(decision, ResizeDecision):
            self._tell_idle(decision.num_workers)
            return decision
        if self._latest_reserved_resources is not None:
            self._tell("waiting", room=self._room, min_workers=self.config.worker_counts[0])
        time.sleep(self.config.resources.poll_seconds)  # Ray asks again at once
        return decision

    def _count_possible_workers(self, reserved_resources: Any) -> int:
        """The largest allowed number of workers that have room; 0, with which Ray waits, if the fewest have none."""
        leaving = draining_nodes()
        stays = {node: amounts for node, amounts in reserved_resources.items() if node not in leaving}
        self._room = min(super()._count_possible_workers(stays), self._room_beside(leaving))
        return max((count for count in self.config.worker_counts if count <= self._room), default=0)

    def _room_beside(self, leaving: Collection[str]) -> int:
        """Workers that fit beside the CPUs of the data stream and of captioning."""
        resources = self.config.resources
        if not resources.cpus_per_worker:
            return resources.workers
        nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in leaving]
        cpus = sum(node["Resources"].get("CPU", 0) for node in nodes) - self.config.cpus_beside_workers
        return max(int(cpus // resources.cpus_per_worker), 0)

    def _tell_idle(self, workers: int) -> None:
        if self._room > workers:
            self._tell("idle", room=self._room, workers=workers)
        self._last_event = {}

    def _tell(self, kind: str, **what: Any) -> None:
        """Log an event, once for each wait and its numbers."""
        if self._last_event != what:
            RunFolder(self.run_uri).try_event(kind, None, **what)
        self._last_event = what


def draining_nodes() -> dict[str, int]:
    """Ids of nodes that will be removed, and when, in milliseconds since 1970; 0: unknown."""
    return dict(ray._private.state.state.get_draining_nodes())


def asked_here() -> str:
    """Why this worker should leave: it was asked, or a node of its group is drained; empty otherwise. No collective."""
    info = get_train_context().preemption_context.preemption_info
    if info is None:
        return graceful_stop.asked()
    ranks = ", ".join(map(str, info.preempted_ranks))
    return f"drain: the node of rank {ranks} goes away"


class CountedFailures(DefaultFailurePolicy):
    """Graceful stops and damaged checkpoints do not count as failures. A step farther than ever resets the count.

    A run that was asked to stop ends with its next graceful stop or failure.
    """

    def __init__(self, failure_config: Any, run_uri: str, generation: int = 0) -> None:
        super().__init__(failure_config)
        self.run_uri, self.generation, self._farthest_step = run_uri, generation, -1
        self._known_failures = len(RunFolder(run_uri).final_failures())  # of earlier drivers

    def make_decision(self, training_failed_error: TrainingFailedError) -> FailureDecision:
        """Also count workers that die while they start: Ray would restart them for ever without a message."""
        started = failure_of_start(training_failed_error)
        if started:
            training_failed_error = WorkerGroupError(str(started), {0: started})  # the rank is not known
        if not isinstance(training_failed_error, (WorkerGroupError, PreemptionError)):
            return super().make_decision(training_failed_error)
        is_over = is_pause(training_failed_error) or self._is_final(training_failed_error)
        if is_over or stop_asked(self.run_uri, self.generation):
            return FailureDecision.RAISE
        reason = graceful_reason(training_failed_error)
        is_counted = not reason and not is_of_damage(training_failed_error)
        decision = self._counted(training_failed_error) if is_counted else FailureDecision.RETRY
        if decision == FailureDecision.RETRY and not self._has_final_event():
            cause = reason or (in_start(started) if started else cause_of(training_failed_error))
            RunFolder(self.run_uri).try_event(
                "stop", None, cause=cause, planned=bool(reason) and not is_stuck(training_failed_error)
            )
        return decision

    def _is_final(self, error: TrainingFailedError) -> bool:
        """Rank 0 or the stream raised an error that would recur; an event of it is logged if there is none."""
        failures = error.worker_failures if isinstance(error, WorkerGroupError) else {}
        common = {rank: e for rank, e in failures.items() if rank == 0 or isinstance(unwrapped(e), RayTaskError)}
        final = next(filter(is_final, map(root_cause, common.values())), None)
        is_failure = final is not None and not isinstance(final, LeaseLostError)
        if is_failure and not self._has_final_event():
            what = {"error": str(final), "type": type(final).__name__, "is_final": True}
            RunFolder(self.run_uri).try_event("failure", None, rank=min(common), **what)
        return final is not None

    def _has_final_event(self) -> bool:
        """A rank has logged a final failure. If Ray saw another rank's error first, `RestOfRun` reports the cause."""
        try:
            return len(RunFolder(self.run_uri).final_failures()) > self._known_failures
        except storage.StorageError:
            return False

    def _counted(self, error: TrainingFailedError) -> FailureDecision:
        reached = last_step(self.run_uri)
        if reached > self._farthest_step:
            self._worker_group_failures, self._farthest_step = 0, reached
        return super().make_decision(error)


def graceful_reason(error: TrainingFailedError) -> str:
    """Reason of a graceful stop; empty where a worker failed."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return next((str(failure) for failure in failures if isinstance(failure, GracefulStop)), "")


def is_pause(error: TrainingFailedError) -> bool:
    """The run has reached the step at which it pauses."""
    return isinstance(error, WorkerGroupError) and any(isinstance(e, Paused) for e in error.worker_failures.values())


def unwrapped(failure: BaseException) -> BaseException:
    """The exception that the worker raised."""
    return getattr(failure, "_base_exc", failure)


def is_stuck(error: TrainingFailedError) -> bool:
    """The group was asked to leave and did not."""
    return isinstance(error, WorkerGroupError) and any(isinstance(e, StuckStop) for e in error.worker_failures.values())


def is_of_damage(error: TrainingFailedError) -> bool:
    """The workers marked their checkpoint as damaged; such restarts need no limit, because checkpoints are few."""
    failures = error.worker_failures.values() if isinstance(error, WorkerGroupError) else ()
    return any(isinstance(root_cause(failure), DamagedCheckpointError) for failure in failures)


def failure_of_start(error: TrainingFailedError) -> Exception | None:
    """Why a worker died before it trained, or None; also put into the error's message: the driver gets no causes."""
    failure = getattr(error, "controller_failure", None)
    if isinstance(failure, WorkerGroupStartupFailedError):
        cause = failure.__cause__ or failure
        failure.args = (in_start(cause),)
        return cause if isinstance(cause, Exception) else failure
    return failure if isinstance(failure, ray.exceptions.RayActorError) else None


def in_start(failure: BaseException) -> str:
    """One line about a worker that died while it started."""
    return f"a worker died while it started: {_shortened(failure)}"


def cause_of(error: TrainingFailedError) -> str:
    """The cause in one line; a lost worker takes precedence over the errors of the others."""
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
