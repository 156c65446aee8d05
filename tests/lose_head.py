"""The loss of a whole cluster under a supervised run, by hand: `make lose-head` (CONTRIBUTING.md); five minutes.

The head and all nodes are killed while the run trains, and a new cluster starts at the same address. The run must
continue by itself, record each step once, and end without error.
"""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import yaml
from nodes import Nodes, events, reached
from toy_run import metrics_of_run, tiny_run, write_scenes

from jobs.pretrain import start_command
from tips_ray.runs.folder import RunFolder

STEPS, LOST_AT_STEP, AWAY_SECONDS, PATIENCE_SECONDS = 120, 45, 15, 600


def run(place: Path) -> None:
    """
    Raises:
        AssertionError: the run did not survive it.
    """
    nodes, path = _cluster(), place / "run.yaml"
    os.environ["RAY_ADDRESS"] = nodes.address
    keys = {"resources__min_workers": 1, "resources__poll_seconds": 0.5, "resources__resize_seconds": 1}
    sizes = {"global_batch_images": 64, "micro_batch_images": 32}
    steps = {"schedule__total_steps": STEPS, "checkpoint_every_steps": 20}
    config = tiny_run(place / "runs", write_scenes(place / "scenes", 40), **keys, **sizes, **steps)
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    folder = RunFolder(f"{config.storage}/{config.name}")
    supervisor = subprocess.Popen(start_command([str(path), "--supervise"]))
    try:
        nodes = _lost(nodes, folder, supervisor)
        assert supervisor.wait() == 0
        assert [line["step"] for line in metrics_of_run(folder)] == list(range(1, STEPS + 1))
    finally:
        supervisor.terminate()
        nodes.cluster.shutdown()


def _cluster(port: int | None = None) -> Nodes:
    nodes = Nodes(port)
    for cpus in (2, 1):
        nodes.add(cpus)
    return nodes


def _lost(nodes: Nodes, folder: RunFolder, supervisor: subprocess.Popen) -> Nodes:
    """Lose the cluster; returns the new one once the run trains on it."""
    _wait(lambda: reached(folder) >= LOST_AT_STEP, supervisor)
    print(f"-- the cluster is lost at step {reached(folder)}", flush=True)
    started = time.monotonic()
    nodes.kill_all()
    time.sleep(AWAY_SECONDS)
    new = _cluster(nodes.port)
    print(f"-- another is at its address after {time.monotonic() - started:.0f} s", flush=True)
    _wait(lambda: bool(events(folder, "change")), supervisor)
    print(f"-- the run goes on: {events(folder, 'change')[-1]}", flush=True)
    return new


def _wait(is_so: Callable[[], bool], supervisor: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        assert supervisor.poll() is None and time.monotonic() < deadline
        time.sleep(1)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        run(Path(folder))
