"""A run under many random losses, by hand: `make soak EVENTS=40` (CONTRIBUTING.md). It takes about a minute an event.

One run on a cluster of several nodes and a real S3 server on loopback, with a supervised driver. Between two events the
run must do a step. At the end every step has had its batch, the first losses equal those of an undisturbed run, and
nothing is left over: no worker, no placement group, no incomplete checkpoint folder.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import ray._private.state
import yaml
from nodes import Node, Nodes, events, reached
from ray.util.placement_group import placement_group_table
from toy_run import metrics_of_run, tiny_run, write_scenes

from jobs.pretrain import start_command
from tips_ray import storage
from tips_ray.config import RunConfig, override
from tips_ray.data.index import run_order
from tips_ray.data.index_folder import index_of
from tips_ray.demo.s3_server import LocalS3, local_s3
from tips_ray.launch import pretrain
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.checkpoint import list_checkpoints
from tips_ray.runs.folder import RunFolder

PATIENCE_SECONDS, AWAY_SECONDS, MOST_NODES = 600, 10, 3
COMPARED_STEPS, TOLERANCE = 30, 1e-5
STEPS_PER_EVENT = 10
ROWS, WINDOW_CHUNKS = 200, 50
"""One window an epoch: to hand out thousands of small ones would take more of the machine than training."""
PACE = {
    "min_workers": 1,
    "workers": 2,
    "resize_seconds": 2,
    "poll_seconds": 0.5,
    "placement_seconds": 5,
    "leave_seconds": 20,
}


class Soak:
    """A cluster, a supervised driver, and the events that may happen to them."""

    def __init__(self, nodes: Nodes, server: LocalS3, config: RunConfig, folder: Path, seed: int) -> None:
        self.nodes, self.server, self.random = nodes, server, random.Random(seed)
        self.folder = RunFolder(f"{config.storage}/{config.name}")
        self.others: list[Node] = [nodes.add(1)]
        path = folder / "run.yaml"
        path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
        self.supervisor = subprocess.Popen(start_command([str(path), "--supervise"]))

    def happenings(self) -> list[Callable[[], None]]:
        """Events that are possible now."""
        always = [self.lose_worker, self.lose_actor, self.lose_driver, self.lose_storage]
        fewer = [self.lose_node, self.drain_node] if self.others else []
        return always + fewer + ([self.join_node] if len(self.others) < MOST_NODES else [])

    def lose_worker(self) -> None:
        self._lose_one_of("RayTrainWorker")

    def lose_actor(self) -> None:
        self._lose_one_of("SplitCoordinator", "TrainController")

    def _lose_one_of(self, *kinds: str) -> None:
        found = [actor for actor in _alive() if actor["ActorClassName"] in kinds]
        if found:
            lost = self.random.choice(sorted(found, key=lambda actor: actor["Pid"]))
            print(f"   {lost['ActorClassName']}", flush=True)
            _kill(lost["Pid"])

    def lose_driver(self) -> None:
        supervisor = self.supervisor.pid
        for driver in Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split():
            _kill(int(driver))

    def lose_storage(self) -> None:
        os.kill(self.server.pid, signal.SIGSTOP)
        time.sleep(AWAY_SECONDS)
        os.kill(self.server.pid, signal.SIGCONT)

    def lose_node(self) -> None:
        self.nodes.kill(self.others.pop(self.random.randrange(len(self.others))))

    def drain_node(self) -> None:
        node = self.others.pop(self.random.randrange(len(self.others)))
        self.nodes.drain(node, seconds=30)
        time.sleep(30)
        self.nodes.kill(node)

    def join_node(self) -> None:
        self.others.append(self.nodes.add(1))

    def wait_for_progress(self) -> None:
        """Wait for a step that was not done before, or for the end."""
        before, deadline = reached(self.folder), time.monotonic() + PATIENCE_SECONDS
        while reached(self.folder) <= before and self.supervisor.poll() is None:
            assert time.monotonic() < deadline, f"no step after {before}; what happened last stands above"
            time.sleep(1)


def run(count: int, seed: int) -> None:
    """
    Raises:
        AssertionError: the run did not survive it.
    """
    with tempfile.TemporaryDirectory() as place, local_s3(Path(place, "s3")) as server:
        os.environ.update(server.environment)
        config = _config(server, write_scenes(Path(place, "scenes"), ROWS), count)
        nodes = Nodes()
        nodes.add(2)
        os.environ["RAY_ADDRESS"] = nodes.address
        ray.init(nodes.address, log_to_driver=False)
        soak = Soak(nodes, server, config, Path(place), seed)
        try:
            _disturb(soak, count)
            assert soak.supervisor.wait() == 0
            _check(soak, config, Path(place))
        finally:
            soak.supervisor.terminate()
            ray.shutdown()
            nodes.cluster.shutdown()


def _config(server: LocalS3, data: str, count: int) -> RunConfig:
    keys = {f"resources__{key}": value for key, value in PACE.items()} | {"resources__max_failures": 10}
    steps = {"schedule__total_steps": STEPS_PER_EVENT * (count + 1), "checkpoint_every_steps": 10}
    sizes = {"global_batch_images": 64, "micro_batch_images": 32, "data__log_samples": True}
    sizes |= {"data__window_chunks": WINDOW_CHUNKS}
    config = tiny_run(Path("unused"), data, **keys, **steps, **sizes)
    return override(RunConfig, config.model_dump(mode="json"), {"storage": server.make_bucket("soak")})


def _disturb(soak: Soak, count: int) -> None:
    for number in range(1, count + 1):
        soak.wait_for_progress()
        if soak.supervisor.poll() is not None:
            print(f"the run ended before event {number}: raise STEPS_PER_EVENT", flush=True)
            return
        happening = soak.random.choice(soak.happenings())
        print(f"-- {number}/{count} at step {reached(soak.folder)}: {happening.__name__}", flush=True)
        happening()


def _check(soak: Soak, config: RunConfig, place: Path) -> None:
    order = run_order(index_of(config.data, f"{config.storage}/index"), config.data, config.seed, 64)
    held: dict[int, list[int]] = {}
    for line in soak.folder.read_samples():
        held.setdefault(line["step"], []).extend(line["positions"])
    wanted = {step: order.batch(step).position_N.tolist() for step in range(config.schedule.total_steps)}
    assert {step: sorted(positions) for step, positions in held.items()} == wanted
    _check_losses(soak.folder, config, place)
    _check_leftovers(soak.folder)
    changes = events(soak.folder, "change")
    lost, again = (sum(change[key] for change in changes) for key in ("seconds_lost", "steps_recomputed"))
    longest = max((change["seconds_lost"] for change in changes), default=0)
    for change in changes:
        parts = ", ".join(f"{name} {seconds:.1f}" for name, seconds in change["seconds"].items())
        print(f"{change['from']} -> {change['to']} in {change['seconds_lost']:.0f} s ({parts}): {change['cause']}")
    print(f"{len(changes)} changes, {again} steps again, {lost:.0f} s lost, {longest:.0f} s at most", flush=True)


def _check_losses(folder: RunFolder, config: RunConfig, place: Path) -> None:
    """Compare the losses of the first steps only, because rounding errors grow."""
    alone = override(RunConfig, config.model_dump(mode="json"), {"storage": str(place / "alone")})
    uri = pretrain(alone, RankTrainer())
    assert uri
    for own, its in zip(metrics_of_run(folder)[:COMPARED_STEPS], metrics_of_run(RunFolder(uri)), strict=False):
        difference = abs(own["loss/total"] - its["loss/total"])
        assert difference <= TOLERANCE * its["loss/total"], (own["step"], difference)


def _check_leftovers(folder: RunFolder) -> None:
    time.sleep(10)
    left = {actor["ActorClassName"] for actor in _alive()}
    assert not {"RayTrainWorker", "TrainController"} & left, left
    assert all(group["state"] == "REMOVED" for group in placement_group_table().values())
    checkpoints = f"{folder.uri}/checkpoints"
    whole = {checkpoint.uri for checkpoint in list_checkpoints(checkpoints)}
    assert set(storage.list_folders(checkpoints)) == whole and len(whole) == 2


def _alive() -> list[dict[str, Any]]:
    return [actor for actor in ray._private.state.actors().values() if actor["State"] == "ALIVE"]


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=int, nargs="?", default=40)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    run(arguments.events, arguments.seed)
    sys.exit(0)
