"""A run submitted to Ray nodes that have networks, host names and addresses of their own: `make namespaces`, as root.

Head, data, caption and training nodes are network namespaces on a bridge; the job server wants a token; images, run
folder and captions are on an S3 server and metrics on an MLflow server, which the nodes reach over the bridge. While
the run trains, a training node is added and drained, another is added and killed, and then the head is. Twenty minutes
on two cores.

    python tests/namespaces.py [FOLDER]        a folder that is kept, for a look at the logs
"""

import asyncio
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import requests
import yaml
from nodes import reached
from toy_run import metrics_of_run, tiny_run, write_scenes

from tips_ray.config import RunConfig, override
from tips_ray.demo.s3_server import local_s3
from tips_ray.runs.folder import RunFolder

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
BRIDGE, NETWORK, HERE = "tips-ray", "10.77.0", "10.77.0.1"
HEAD, DASHBOARD = f"{NETWORK}.2", f"http://{NETWORK}.2:8265"
STEPS, PATIENCE_SECONDS = 100, 600
ROLES = {"data": (4, {"data": 4}), "caption": (2, {"caption": 1}), "train": (1, {"train": 1})}
"""CPUs and roles of each kind of node."""


class Network:
    """Ray nodes by name; each has a network namespace, a mount namespace with its own /tmp/ray, and a host name."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        self.place, self.environment = place, environment
        self._numbers: dict[str, int] = {}
        self._nodes: dict[str, subprocess.Popen] = {}
        _ip(f"link add {BRIDGE} type bridge", f"addr add {HERE}/24 dev {BRIDGE}", f"link set {BRIDGE} up")

    def start(self, name: str, *options: str) -> None:
        """Start `ray start` with these options as a node."""
        if name not in self._numbers:
            self._numbers[name] = number = len(self._numbers) + 2
            inside, outside = f"tri{number}", f"tro{number}"
            _ip(f"netns add {BRIDGE}-{name}", f"link add {outside} type veth peer name {inside}")
            _ip(f"link set {inside} netns {BRIDGE}-{name}", f"link set {outside} master {BRIDGE} up")
            own = f"-n {BRIDGE}-{name} "
            _ip(f"{own}addr add {self.address(name)}/24 dev {inside}", f"{own}link set {inside} up")
            _ip(f"{own}link set lo up", f"{own}route add default via {HERE}")
        private = self.place / name
        private.mkdir(exist_ok=True)
        ray = [
            "ray",
            "start",
            "--block",
            "--disable-usage-stats",
            f"--node-ip-address={self.address(name)}",
            f"--node-name={name}",
        ]
        ray += ["--object-store-memory=104857600", *options]
        (private / "hosts").write_text(f"127.0.0.1 localhost\n{self.address(name)} {name}\n")
        mounts = {"": "/tmp/ray", "hosts": "/etc/hosts", "resolv.conf": "/etc/resolv.conf"}  # names need no server
        (private / "resolv.conf").touch()
        own_place = " && ".join(f"mount --bind {private / source} {target}" for source, target in mounts.items())
        own_place = f"hostname {name} && mkdir -p /tmp/ray && {own_place} && exec {shlex.join(ray)}"
        command = ["ip", "netns", "exec", f"{BRIDGE}-{name}", "unshare", "--mount", "--uts", "sh", "-c", own_place]
        with (self.place / f"{name}.log").open("ab") as log:
            self._nodes[name] = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)

    def address(self, name: str) -> str:
        return f"{NETWORK}.{self._numbers[name]}"

    def kill(self, *names: str) -> None:
        """Kill all processes of the nodes at once."""
        for name in names:
            node = self._nodes.pop(name)
            if node.poll() is not None:
                print(f"-- {name} has ended by itself: {(self.place / f'{name}.log').read_text()[-1500:]}", flush=True)
                continue
            for process in [*psutil.Process(node.pid).children(recursive=True), node]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            node.wait(30)

    def drain(self, name: str) -> None:
        """Give notice that the node goes away in ten minutes, as the owner of a spot machine does."""
        (node,) = [one["node_id"] for one in self.nodes() if one["node_name"] == name]
        command = [str(BIN / "ray"), "drain-node", f"--address={HEAD}:6379", f"--node-id={node}"]
        command += ["--reason=DRAIN_NODE_REASON_PREEMPTION", "--reason-message=test"]
        command += ["--deadline-remaining-seconds=600"]
        subprocess.run(command, env=self.environment, check=True, capture_output=True, timeout=60)

    def close(self) -> None:
        self.kill(*list(self._nodes))
        for name, number in self._numbers.items():
            for command in (f"link del tro{number}", f"netns del {BRIDGE}-{name}"):
                with suppress(subprocess.CalledProcessError):
                    _ip(command)
        _ip(f"link del {BRIDGE}")

    def start_head(self) -> None:
        self.start("head", "--head", "--port=6379", "--num-cpus=0", "--dashboard-host=0.0.0.0")
        _wait("the head", lambda: self.answers("/api/version"))

    def start_worker(self, kind: str, number: int = 1) -> None:
        cpus, roles = ROLES[kind]
        options = [f"--address={HEAD}:6379", f"--num-cpus={cpus}", f"--resources={json.dumps(roles)}"]
        self.start(f"{kind}{number}", *options, f"--labels=kind={kind}")

    def answers(self, path: str) -> Any:
        """What the dashboard answers; None while it does not."""
        token = Path(self.environment["RAY_AUTH_TOKEN_PATH"]).read_text()
        with suppress(requests.RequestException, ValueError):
            answer = requests.get(f"{DASHBOARD}{path}", timeout=20, headers={"Authorization": f"Bearer {token}"})
            return answer.json() if answer.ok else None

    def nodes(self) -> list[dict[str, Any]]:
        """Living nodes."""
        return [node for node in self._rows("nodes") if node["state"] == "ALIVE"]

    def _rows(self, kind: str) -> list[dict[str, Any]]:
        found = self.answers(f"/api/v0/{kind}?limit=1000&detail=1")
        return found["data"]["result"]["result"] if found else []

    def hosts_of(self, kind: str) -> set[str]:
        """Host names of the nodes that run living actors whose class has `kind` in its name."""
        nodes = self.nodes()
        names = {node["node_id"]: node["node_name"] or node["node_ip"] for node in nodes}
        actors = self._rows("actors")
        return {names[one["node_id"]] for one in actors if kind in one["class_name"] and one["state"] == "ALIVE"}


def _ip(*commands: str) -> None:
    for command in commands:
        subprocess.run(["ip", *command.split()], check=True, capture_output=True)


@contextmanager
def _forwarded(port: int) -> Iterator[int]:
    """A port at the bridge that leads to a server on this machine's loopback."""

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                writer.write(data)
                await writer.drain()
        writer.close()

    async def joined(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection("127.0.0.1", port)
        with suppress(asyncio.CancelledError):  # at the end
            await asyncio.gather(pipe(reader, back), pipe(there, writer))

    loop = asyncio.new_event_loop()
    server = loop.run_until_complete(asyncio.start_server(joined, HERE, 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        for task in (open_ones := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*open_ones, return_exceptions=True))


def run(place: Path) -> None:
    """
    Raises:
        AssertionError: the run did not survive, or did its work on other nodes than its roles say.
    """
    token = place / "token"
    token.write_text(secrets.token_hex(32))
    own = {"PATH": f"{BIN}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "RAY_memory_monitor_refresh_ms": "0"}
    own |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_API_SERVER_ADDRESS": DASHBOARD}
    with ExitStack() as stack:
        network = Network(place, os.environ | own)
        stack.callback(network.close)
        server = stack.enter_context(local_s3(place / "s3"))
        port = stack.enter_context(_forwarded(int(server.endpoint_url.rpartition(":")[2])))
        reached_at = server.environment | {"AWS_ENDPOINT_URL": f"http://{HERE}:{port}"}
        network.environment |= reached_at
        os.environ.update(reached_at)
        tracking = stack.enter_context(_mlflow(place, network.environment))
        config = _config(place, server.make_bucket("all"), server.client(), tracking)
        (place / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
        network.start_head()
        for kind in ROLES:
            network.start_worker(kind)
        _wait("the nodes", lambda: len(network.nodes()) == 4)
        _trained(network, place, RunFolder(f"{config.storage}/{config.name}"))


@contextmanager
def _mlflow(place: Path, environment: dict[str, str]) -> Iterator[str]:
    command = [str(BIN / "mlflow"), "server", "--host", HERE, "--port", "5099", "--workers", "1"]
    command += [
        "--backend-store-uri",
        f"sqlite:///{place / 'mlflow.db'}",
        "--artifacts-destination",
        str(place / "art"),
    ]
    command += ["--allowed-hosts", f"{HERE}:5099"]
    with (place / "mlflow.log").open("wb") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=place)
    try:
        yield f"http://{HERE}:5099"
    finally:
        for process in [*psutil.Process(server.pid).children(recursive=True), server]:
            process.terminate()
        server.wait(30)


def _config(place: Path, bucket: str, client: Any, tracking: str) -> RunConfig:
    for path in Path(write_scenes(place / "scenes", 256)).iterdir():
        client.upload_file(str(path), "all", f"scenes/{path.name}")
    keys: dict[str, Any] = {"schedule__total_steps": STEPS, "resources__workers": 2, "resources__min_workers": 1}
    keys |= {"resources__roles": True, "resources__poll_seconds": 0.5, "resources__resize_seconds": 1}
    keys |= {"resources__data_cpus": 1, "global_batch_images": 32, "checkpoint_every_steps": 20}
    keys |= {"tracking__mlflow_uri": tracking, "captions__source": "live", "captions__store": f"{bucket}/captions"}
    keys |= {
        "captions__captioner": {"model": str(ROOT / "jobs/scene_captioner"), "dtype": "fp32", "max_new_tokens": 64}
    }
    config = tiny_run(Path("unused"), f"{bucket}/scenes", **keys)
    return override(RunConfig, config.model_dump(mode="json"), {"storage": f"{bucket}/runs", "name": "nodes"})


def _trained(network: Network, place: Path, folder: RunFolder) -> None:
    begun = time.monotonic()
    command = [str(BIN / "tips-ray"), "submit", "--follow", "--retries", "3", "--", "pretrain", "run.yaml"]
    with (place / "submit.log").open("wb") as log:
        submit = subprocess.Popen(command, env=network.environment, cwd=place, stdout=log, stderr=log)
    try:
        _wait("captioning", lambda: network.hosts_of("Captioner") or reached(folder) > 0, submit)
        found = network.hosts_of("Captioner")
        assert not found or found == {"caption1"}, f"captions are made on {found}"
        _wait("the first step", lambda: reached(folder) > 0, submit)
        print(f"-- from submit to the first step {time.monotonic() - begun:.0f} s", flush=True)
        assert network.hosts_of("RayTrainWorker") == {"train1"}
        for number, lose in enumerate((network.drain, network.kill), 2):
            lost = f"train{number}"
            network.start_worker("train", number)
            _wait(f"two workers with {lost}", lambda: _counts(folder)[-1:] == [2], submit)
            assert network.hosts_of("RayTrainWorker") == {"train1", lost}
            lose(lost)
            _wait(f"one worker without {lost}", lambda: _counts(folder)[-1] == 1, submit)
        grown, drained = [event for event in folder.read_events() if event["kind"] == "change"][:2]
        assert drained["cause"].startswith("drain: "), drained
        assert (grown["steps_recomputed"], drained["steps_recomputed"]) == (0, 0), (grown, drained)
        network.kill("train2")
        step = reached(folder)
        network.kill("head", "data1", "caption1", "train1")
        print(f"-- the head and all nodes are lost at step {step}", flush=True)
        network.start_head()
        for kind in ROLES:
            network.start_worker(kind)
        _wait("the end", lambda: submit.poll() is not None)
        assert submit.returncode == 0, f"exit code {submit.returncode}"
        assert [line["step"] for line in metrics_of_run(folder)] == list(range(1, STEPS + 1))
    finally:
        print((place / "submit.log").read_text(), flush=True)
        if submit.poll() is None:
            submit.kill()


def _counts(folder: RunFolder) -> list[int]:
    return [event["workers"] for event in folder.read_events() if event["kind"] in ("start", "resume")]


def _wait(what: str, is_so: Callable[[], Any], submit: subprocess.Popen | None = None) -> None:
    begun = time.monotonic()
    while not is_so():
        assert submit is None or submit.poll() is None, f"submit ended before {what}"
        assert time.monotonic() < begun + PATIENCE_SECONDS, f"{what} did not come"
        time.sleep(0.5)
    print(f"-- {what}: after {time.monotonic() - begun:.0f} s", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the nodes end with it
    with tempfile.TemporaryDirectory(prefix="tr") as folder:
        run(Path(sys.argv[1] if len(sys.argv) > 1 else folder))
