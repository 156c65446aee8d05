"""Ray's internals are as we know them, and our two policies decide correctly; no cluster."""

import inspect
import pickle
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.exceptions import RayActorError, RayTaskError
from ray.train import FailureConfig, ScalingConfig
from ray.train.v2._internal.exceptions import (
    UserExceptionWithTraceback,
    WorkerGroupStartupFailedError,
    WorkerHealthCheckFailedError,
)
from ray.train.v2._internal.execution.failure_handling import FailureDecision
from ray.train.v2._internal.execution.scaling_policy import NoopDecision, ResizeDecision, elastic
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError
from toy_run import tiny_run

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.errors import described
from tips_ray.ray_data_adapter import FORGOTTEN_SECONDS, RENEWED_SECONDS, Coordinator
from tips_ray.runs.checkpoint import DamagedCheckpointError
from tips_ray.runs.folder import RunFolder
from tips_ray.train import adapter
from tips_ray.train.adapter import CountedFailures, GracefulScaling, cause_of
from tips_ray.train.graceful_stop import GracefulStop

LOST = WorkerGroupError("", {1: WorkerHealthCheckFailedError("gone", RuntimeError("gone")), 0: RuntimeError("echo")})
LEFT = WorkerGroupError("", {0: GracefulStop("room for 3 workers instead of 2")})


@pytest.fixture
def config(tmp_path) -> RunConfig:
    keys = {"resources__workers": 4, "resources__min_workers": 2, "resources__poll_seconds": 0.01}
    return tiny_run(tmp_path, "data", **keys, global_batch_images=32)


@pytest.fixture
def policy(config, tmp_path, monkeypatch) -> GracefulScaling:
    monkeypatch.setattr(adapter, "draining_nodes", dict)
    scaling = ScalingConfig(num_workers=(2, 4), elastic_resize_monitor_interval_s=0)
    policy = GracefulScaling(scaling, config, str(tmp_path / "run"))
    monkeypatch.setattr(policy, "_maybe_send_resource_request", lambda: None)
    return policy


def _offer(policy: GracefulScaling, monkeypatch: Any, workers: int, cpus: int, beside: int = 0) -> None:
    """The coordinator has reserved CPUs for so many workers on node `a`; node `b` has CPUs beside them."""
    policy._latest_reserved_resources = {"a": {"CPU": float(workers)}}
    monkeypatch.setattr(policy, "_get_reserved_resources", lambda: policy._latest_reserved_resources)
    sizes = {"a": float(cpus), "b": float(beside)}
    nodes = [{"Alive": True, "NodeID": name, "Resources": {"CPU": size}} for name, size in sizes.items()]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)


def _kinds(policy: GracefulScaling) -> list[tuple[str, int]]:
    return [(event["kind"], event["room"]) for event in RunFolder(policy.run_uri).read_events()]


def test_the_places_that_we_reach_into_are_there():
    assert ray.__version__.startswith(adapter.WRITTEN_FOR)
    source = inspect.getsource(DataParallelTrainer.fit)
    assert "self._initialize_and_run_controller(" in source
    assert "scaling_policy=" in source and "failure_policy=" in source


def test_another_ray_is_refused(monkeypatch):
    monkeypatch.setattr(ray, "__version__", "2.61.0")
    with pytest.raises(ValueError, match=r"ray 2.61.0 is installed, .* knows the internals of 2.60.x: pip install"):
        adapter.require_ray()


def test_the_global_batch_is_shared_out_among_two_and_four_but_not_three(config):
    assert config.worker_counts == (2, 4)


def test_room_for_three_starts_two_and_names_the_idle_one(policy, monkeypatch):
    _offer(policy, monkeypatch, workers=3, cpus=8)
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2
    assert _kinds(policy) == [("idle", 3)]


def test_the_data_stream_keeps_its_cpus(policy, monkeypatch):
    _offer(policy, monkeypatch, workers=4, cpus=4)
    decision = policy.make_decision_for_non_running_worker_group()
    assert isinstance(decision, ResizeDecision) and decision.num_workers == 2


def test_below_the_fewest_it_waits_and_says_so_once(policy, monkeypatch):
    _offer(policy, monkeypatch, workers=1, cpus=8)
    for _ in range(3):
        assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)
    assert _kinds(policy) == [("waiting", 1)]


def test_a_drained_node_has_no_room(policy, monkeypatch):
    _offer(policy, monkeypatch, workers=4, cpus=8, beside=8)
    monkeypatch.setattr(adapter, "draining_nodes", lambda: {"a": 0})
    assert isinstance(policy.make_decision_for_non_running_worker_group(), NoopDecision)


def test_a_running_group_is_asked_and_not_torn_down(policy, monkeypatch):
    _offer(policy, monkeypatch, workers=4, cpus=8)
    asked: list[str] = []
    place = SimpleNamespace(node_id="a")
    worker = SimpleNamespace(metadata=place, execute_async=lambda ask, reason: asked.append(reason))
    group = SimpleNamespace(start_time=0.0, num_workers=2, workers=[worker, worker])
    assert isinstance(policy.make_decision_for_running_worker_group(group, None), NoopDecision)
    assert asked == ["room for 4 workers instead of 2"] * 2


def test_a_group_that_lost_its_data_and_does_not_leave_is_stopped(policy, monkeypatch):
    _offer(policy, monkeypatch, workers=2, cpus=8)
    clock = iter([0.0, 0.0, 121.0])
    monkeypatch.setattr(adapter.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(elastic, "time_monotonic", lambda: 1.0)
    worker = SimpleNamespace(metadata=SimpleNamespace(node_id="a"), execute_async=lambda ask, reason: None)
    group = SimpleNamespace(start_time=0.0, num_workers=4, workers=[worker] * 4)
    assert isinstance(policy.make_decision_for_running_worker_group(group, None), NoopDecision)
    with pytest.raises(WorkerGroupError) as stopped:
        policy.make_decision_for_running_worker_group(group, None)
    failures = CountedFailures(FailureConfig(max_failures=0), policy.run_uri)
    assert failures.make_decision(stopped.value) == FailureDecision.RETRY
    (event,) = RunFolder(policy.run_uri).read_events()
    assert event["cause"] == "room for 2 workers instead of 4, and they do not leave" and not event["planned"]


def test_a_group_whose_data_stream_lost_its_room_leaves_and_waits_unless_that_passes(policy, monkeypatch):
    clock, asked = SimpleNamespace(now=0.0), []
    monkeypatch.setattr(adapter.time, "monotonic", lambda: clock.now)
    worker = SimpleNamespace(
        metadata=SimpleNamespace(node_id="a"), execute_async=lambda ask, reason: asked.append(reason)
    )
    group = SimpleNamespace(start_time=0.0, num_workers=2, workers=[worker] * 2)
    policy.scaling_config.elastic_resize_monitor_interval_s = 60  # Ray's own look is seldom
    monkeypatch.setattr(elastic, "time_monotonic", lambda: 61.0 + clock.now)

    def look(cpus: int, seconds: float) -> Any:
        _offer(policy, monkeypatch, workers=2, cpus=cpus)
        clock.now += seconds
        return policy.make_decision_for_running_worker_group(group, None)

    assert isinstance(look(cpus=2, seconds=0), NoopDecision) and not asked
    assert isinstance(look(cpus=4, seconds=adapter.BELOW_SECONDS + 1), NoopDecision) and not asked
    assert isinstance(look(cpus=2, seconds=61), NoopDecision) and not asked
    assert isinstance(look(cpus=2, seconds=adapter.BELOW_SECONDS + 1), NoopDecision)
    assert asked == ["room for 1 workers, at least 2 must train"] * 2
    with pytest.raises(WorkerGroupError, match="room for 1 workers, at least 2 must train, and they do not leave"):
        look(cpus=2, seconds=121)


def test_nodes_of_a_driver_that_was_killed_are_soon_free_for_the_next():
    clock = [0.0]
    node = {"Alive": True, "NodeID": "a", "Resources": {"CPU": 2.0}, "Labels": {}}
    given = {"get_current_time": lambda: clock[0], "get_cluster_nodes": lambda: [node]}
    coordinator = Coordinator(0.01, **given, send_resources_request=lambda bundles: None)
    for requester in ("killed", "next"):
        coordinator.request_resources(requester, [{"CPU": 1.0}] * 2, expire_after_s=180)
    assert coordinator.get_reserved_resources("next") == {}
    clock[0] = FORGOTTEN_SECONDS - 1.0
    coordinator.request_resources("next", [{"CPU": 1.0}] * 2, expire_after_s=180)
    clock[0] = FORGOTTEN_SECONDS + 1.0
    assert coordinator.get_reserved_resources("next", recompute=True) == {"a": {"CPU": 2.0}}


def test_who_lives_asks_again_before_it_is_forgotten(config, tmp_path, monkeypatch):
    policy = GracefulScaling(ScalingConfig(num_workers=(2, 4)), config, str(tmp_path / "run"))
    asked: list[float] = []
    policy._coordinator_client = SimpleNamespace(_latest_autoscaling_request_time=0.0)  # pyright: ignore
    monkeypatch.setattr(policy, "_send_resource_request", lambda: asked.append(1))
    clock = iter([RENEWED_SECONDS - 1.0, RENEWED_SECONDS + 1.0])
    monkeypatch.setattr(adapter.time, "monotonic", lambda: next(clock))
    policy._maybe_send_resource_request()
    policy._maybe_send_resource_request()
    assert asked == [1] and 3 * RENEWED_SECONDS < FORGOTTEN_SECONDS


def test_what_a_worker_says_of_another_that_is_gone_is_no_cause():
    echo, own = RuntimeError("gloo: Connection reset by peer"), RuntimeError("no space left")
    assert cause_of(WorkerGroupError("", {0: echo, 1: own})) == "rank 1: RuntimeError: no space left"
    assert cause_of(WorkerGroupError("", {0: echo})) == "lost: a worker, as rank 0 noticed"


def test_planned_stops_are_not_counted_as_failures(tmp_path):
    failures = CountedFailures(FailureConfig(max_failures=1), str(tmp_path))
    decisions = [failures.make_decision(error) for error in (LEFT, LEFT, LOST, LEFT, LOST)]
    assert decisions == [FailureDecision.RETRY] * 4 + [FailureDecision.RAISE]
    causes = [event["cause"] for event in RunFolder(str(tmp_path)).read_events()]
    assert causes == ["room for 3 workers instead of 2"] * 2 + ["lost: rank 1", "room for 3 workers instead of 2"]


def test_a_damaged_checkpoint_is_no_failure_and_is_told(tmp_path):
    failures = CountedFailures(FailureConfig(max_failures=0), str(tmp_path))
    error = _of_worker(DamagedCheckpointError("checkpoint step-00000004 cannot be loaded: the sha256 differs"))
    assert failures.make_decision(WorkerGroupError("", {0: error, 1: error})) == FailureDecision.RETRY
    (event,) = RunFolder(str(tmp_path)).read_events()
    assert "DamagedCheckpointError: checkpoint step-00000004" in event["cause"] and not event["planned"]


def test_a_step_farther_than_ever_makes_a_failure_forgotten(tmp_path, monkeypatch):
    failures, steps = CountedFailures(FailureConfig(max_failures=1), str(tmp_path)), iter([0, 10, 20, 20])
    monkeypatch.setattr(adapter, "last_step", lambda uri: next(steps))
    decisions = [failures.make_decision(LOST) for _ in range(4)]
    assert decisions == [FailureDecision.RETRY] * 3 + [FailureDecision.RAISE]


def _of_worker(error: Exception) -> Exception:
    return UserExceptionWithTraceback(error, "Traceback")


def test_an_error_that_would_come_again_ends_the_run_at_once_whoever_told_of_it(tmp_path):
    bad_rows, echo = ValueError("too many bad rows"), RuntimeError("gloo: Connection reset by peer")
    of_stream = RayTaskError("_read_windows", "ray::f() Traceback ...", bad_rows).as_instanceof_cause()
    for number, failures in enumerate(
        [{0: _of_worker(bad_rows), 1: echo}, {1: _of_worker(of_stream)}, {0: _of_worker(of_stream)}]
    ):
        uri = str(tmp_path / str(number))
        policy = CountedFailures(FailureConfig(max_failures=3), uri)
        assert policy.make_decision(WorkerGroupError("", failures)) == FailureDecision.RAISE
        (event,) = RunFolder(uri).final_failures()
        assert (event["error"], event["type"]) == ("too many bad rows", "ValueError")


def test_what_another_rank_says_before_the_one_that_told_the_cause_starts_an_attempt_that_tells_it(tmp_path):
    RunFolder(str(tmp_path)).log_event("start", 0)
    policy = CountedFailures(FailureConfig(max_failures=3), str(tmp_path))
    RunFolder(str(tmp_path)).log_event("failure", 3, error="bad rows", type="ValueError", is_final=True)
    echo = WorkerGroupError("", {1: RuntimeError("gloo: Connection reset by peer")})
    assert policy.make_decision(echo) == FailureDecision.RETRY
    assert [event["kind"] for event in RunFolder(str(tmp_path)).read_events()] == ["start", "failure"]


def test_an_error_of_one_rank_that_is_not_the_first_and_of_its_own_is_tried_again(tmp_path):
    policy = CountedFailures(FailureConfig(max_failures=1), str(tmp_path))
    error = WorkerGroupError("", {1: _of_worker(storage.StorageError("/tmp: no space left"))})
    assert policy.make_decision(error) == FailureDecision.RETRY
    away = WorkerGroupError("", {0: _of_worker(storage.StorageError("s3://b: away", may_pass=True))})
    assert policy.make_decision(away) == FailureDecision.RAISE and not RunFolder(str(tmp_path)).final_failures()


def test_workers_that_die_while_they_start_are_failures_and_named(tmp_path):
    failures = CountedFailures(FailureConfig(max_failures=1), str(tmp_path))
    failure = WorkerGroupStartupFailedError("At least one of the worker actors failed to initialize.")
    failure.__cause__ = RuntimeError("its process was killed\nfor want of memory")
    error = ControllerError(failure)
    assert [failures.make_decision(error) for _ in range(2)] == [FailureDecision.RETRY, FailureDecision.RAISE]
    (event,) = RunFolder(str(tmp_path)).read_events()
    assert event["cause"] == "a worker died while it started: its process was killed for want of memory"
    assert described(pickle.loads(pickle.dumps(error))) == event["cause"]  # as the driver gets it


def test_workers_whose_node_is_taken_while_they_start_are_no_failures(tmp_path):
    failures = CountedFailures(FailureConfig(max_failures=0), str(tmp_path))
    taken = RayActorError(preempted=True)
    failure = WorkerGroupStartupFailedError("One of the worker actors failed to initialize")
    failure.__cause__ = taken
    for error in (ControllerError(failure), ControllerError(taken)):
        assert failures.make_decision(error) == FailureDecision.RETRY
    assert failures.make_decision(ControllerError(RayActorError())) == FailureDecision.RAISE
