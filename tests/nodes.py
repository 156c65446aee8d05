"""A Ray cluster on this machine, whose nodes are added and removed while a run trains on it."""

import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import ray
from costs import waiting
from ray._private.node import Node
from ray._raylet import GcsClient  # pyright: ignore[reportAttributeAccessIssue]
from ray.cluster_utils import Cluster
from ray.core.generated.autoscaler_pb2 import DrainNodeReason  # pyright: ignore[reportAttributeAccessIssue]

from tips_ray.config import RunConfig
from tips_ray.launch import pretrain
from tips_ray.runs.folder import RunFolder

STORE_BYTES = 100 << 20
SETTINGS = {
    "health_check_period_ms": 1000,  # a killed node is noticed after seconds instead of a quarter of a minute
    "health_check_failure_threshold": 5,
    "num_workers_soft_limit": 8,  # the default is one per CPU: with few CPUs nearly every task would start its own
    "idle_worker_killing_time_threshold_ms": 60_000,
}


class Nodes:
    """A head without CPUs, where the driver is, and nodes at 127.0.0.2, 127.0.0.3, ..."""

    def __init__(self, port: int | None = None) -> None:
        """`port` of the head; None: a free one."""
        self.port = port or _free_port()
        head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        head |= {"gcs_server_port": self.port, "_system_config": SETTINGS}
        with waiting("Ray clusters", 1):
            self.cluster, self._count = Cluster(initialize_head=True, head_node_args=head), 1

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self, cpus: int, resources: dict[str, float] | None = None) -> Node:
        self._count += 1
        place = f"127.0.0.{self._count}"
        with waiting("nodes of Ray", 1):
            return self.cluster.add_node(
                num_cpus=cpus, resources=resources, node_ip_address=place, object_store_memory=STORE_BYTES
            )

    def drain(self, node: Node, seconds: float) -> None:
        """Give notice that the node is removed after so many seconds, as for a spot machine."""
        reason = DrainNodeReason.Value("DRAIN_NODE_REASON_PREEMPTION")
        deadline_ms = int(1000 * (time.time() + seconds))
        accepted, why = GcsClient(address=self.address).drain_node(node.node_id, reason, "test", deadline_ms)
        assert accepted, why

    def kill(self, node: Node) -> None:
        """Send SIGKILL to the node's raylet, with which its workers end."""
        os.kill(node.all_processes["raylet"][0].process.pid, signal.SIGKILL)
        self.cluster.remove_node(node, allow_graceful=False)

    def kill_all(self) -> None:
        """Kill every node, the head first."""
        head = self.cluster.head_node
        assert head is not None
        for node in (head, *self.cluster.worker_nodes):
            node.kill_all_processes(check_alive=False, allow_graceful=False)


@contextmanager
def nodes_of_cluster(monkeypatch: Any) -> Iterator[Nodes]:
    """A cluster that RAY_ADDRESS names until the block ends; the cluster that tests share ends before."""
    ray.shutdown()
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")
    nodes = Nodes()
    monkeypatch.setenv("RAY_ADDRESS", nodes.address)
    try:
        yield nodes
    finally:
        ray.shutdown()
        nodes.cluster.shutdown()


@contextmanager
def running(config: RunConfig) -> Iterator[Future]:
    """Train the run in a thread: nodes must be added from the main thread."""
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(pretrain, config)


def wait_until(is_so: Callable[[], bool], run: Future, seconds: float = 300) -> None:
    """
    Raises:
        AssertionError: it did not happen while the run went on.
    """
    deadline = time.monotonic() + seconds
    while not is_so():
        if run.done():
            raise AssertionError(f"the run has ended: {run.exception() or run.result()}")
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def wait_for_step(folder: RunFolder, step: int, run: Future) -> None:
    wait_until(lambda: reached(folder) >= step, run)


def reached(folder: RunFolder) -> int:
    metrics = folder.read_metrics()
    return metrics[-1]["step"] if metrics else 0


def events(folder: RunFolder, kind: str) -> list[dict[str, Any]]:
    return [event for event in folder.read_events() if event["kind"] == kind]


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
