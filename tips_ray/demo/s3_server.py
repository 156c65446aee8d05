"""A real S3 server on loopback, for the demo and for tests: `python -m tips_ray.demo.s3_server FOLDER`.

It is OpenStack Swift with its s3api middleware (`pip install swift`). Its four servers share one child process. Objects
stay in the folder; a later start serves them again, with a new port and a new secret.
"""

import contextlib
import fcntl
import functools
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from time import monotonic, sleep
from typing import Any, TextIO

ACCESS_KEY, REGION = "tips:tester", "us-east-1"
BACKENDS = ("account", "container", "object")
READY_FILE, LOG_FILE = "ready", "server.log"
START_SECONDS, STOP_SECONDS = 60, 5
MISSING = "the local S3 server needs the package 'swift' (Linux): pip install swift"

# Long time-outs: there is no background daemon, so a time-out would leave an object out of its listing for good.
BACKEND_CONF = """[DEFAULT]
devices = {root}/devices
mount_check = false
swift_dir = {root}
disable_fallocate = true
conn_timeout = 30
node_timeout = 60
container_update_timeout = 60
log_level = ERROR
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
"""
MIDDLEWARE = ("catch_errors", "gatekeeper", "healthcheck", "listing_formats", "bulk", "s3api", "tempauth", "copy")
MIDDLEWARE += ("slo", "dlo", "versioned_writes", "symlink")
OPTIONS = {"s3api": f"location = {REGION}", "versioned_writes": "allow_object_versioning = true"}
PROXY_CONF = """[DEFAULT]
swift_dir = {root}
log_level = ERROR
[pipeline:main]
pipeline = {middleware} proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
conn_timeout = 30
node_timeout = 60
recoverable_node_timeout = 60
error_suppression_limit = 1000000
"""
SWIFT_CONF = """[swift-hash]
swift_hash_path_prefix = tips
swift_hash_path_suffix = ray
[storage-policy:0]
name = single
default = yes
"""


@dataclass(frozen=True)
class LocalS3:
    """A running server."""

    endpoint_url: str
    secret: str = field(repr=False)
    pid: int

    @property
    def environment(self) -> dict[str, str]:
        """Variables for boto3, s3fs, pyarrow, Ray and MLflow; use `os.environ.update(server.environment)`."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": self.secret,
            "AWS_DEFAULT_REGION": REGION,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self) -> Any:
        """A boto3 client of this server, independent of the environment."""
        import boto3
        from botocore.config import Config

        keys = {"aws_access_key_id": ACCESS_KEY, "aws_secret_access_key": self.secret}
        no_proxies = Config(proxies={})
        return boto3.client("s3", endpoint_url=self.endpoint_url, region_name=REGION, config=no_proxies, **keys)

    def make_bucket(self, name: str) -> str:
        """Create the bucket if it does not exist; return its `s3://` URI."""
        client = self.client()
        with contextlib.suppress(client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)
        return f"s3://{name}"


@contextlib.contextmanager
def local_s3(root: Path, port: int | None = None) -> Iterator[LocalS3]:
    """Serve the objects below `root` until the context, or this process, ends.

    Raises:
        OSError: `swift` is not installed, or the server did not start; the message ends with its log.
    """
    if find_spec("swift") is None:
        raise OSError(MISSING)
    root.mkdir(parents=True, exist_ok=True)
    root.joinpath(READY_FILE).unlink(missing_ok=True)
    process = _start(root, port or 0, _secret())
    try:
        yield LocalS3(f"http://127.0.0.1:{_wait_for_port(process, root)}", _secret(), process.pid)
    finally:
        _stop(process)


@functools.cache
def _secret() -> str:
    """One secret for all servers of this process, because boto3's default session keeps the first that it sees."""
    return secrets.token_hex(16)


def _start(root: Path, port: int, secret: str) -> subprocess.Popen:
    """Start this file as a child in a new session, so that Ctrl-C reaches only the parent, which stops the child."""
    settings = {"root": str(root.resolve()), "port": port, "parent": os.getpid()}
    command = [sys.executable, "-P", "-W", "ignore", __file__, "--serve", json.dumps(settings)]
    with root.joinpath(LOG_FILE).open("w") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True, text=True
        )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError), process.stdin as stdin:  # every user can read command lines
        stdin.write(secret)
    return process


def _wait_for_port(process: subprocess.Popen, root: Path) -> int:
    ready, deadline = root / READY_FILE, monotonic() + START_SECONDS
    while not ready.exists():
        code = process.poll()
        if code is not None or monotonic() > deadline:
            what = f"is not up after {START_SECONDS} s" if code is None else f"ended with code {code}"
            raise OSError(f"the local S3 server {what}; its log ends:\n{_tail(root / LOG_FILE)}")
        sleep(0.02)
    return int(ready.read_text())


def _tail(path: Path, lines: int = 15) -> str:
    return "\n".join(path.read_text(errors="replace").splitlines()[-lines:])


def _stop(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _serve(root: Path, port: int, parent: int) -> None:
    """Run the child: bind free ports, write the configuration for them, serve until the parent is gone."""
    secret = sys.stdin.read()
    _require_attributes(root)
    lock = _lock(root)
    import eventlet
    import eventlet.hubs
    from swift.common import utils

    eventlet.hubs.use_hub(utils.get_hub())
    utils.monkey_patch()
    sockets = {name: eventlet.listen(("127.0.0.1", 0)) for name in BACKENDS}
    sockets["proxy"] = eventlet.listen(("127.0.0.1", port))
    _configure(root, {name: sockets[name].getsockname()[1] for name in BACKENDS}, secret)
    for name, server_socket in sockets.items():
        eventlet.spawn(_run_app, _load_app(root, name), server_socket)
    _publish(root, sockets["proxy"].getsockname()[1])
    # PR_SET_PDEATHSIG would fire when the thread that started us ends.
    while os.getppid() == parent and not lock.closed:
        eventlet.sleep(1)


def _load_app(root: Path, name: str) -> Any:
    from swift.common import wsgi

    app = wsgi.init_request_processor(str(root / f"{name}-server.conf"), f"{name}-server", verbose=True)[0]
    if name != "proxy":
        return app
    cache = _Cache()
    return lambda environ, start_response: app({**environ, "swift.cache": cache}, start_response)


class _Cache:
    """What the proxy knows of accounts and containers, in place of memcached.

    Without it each request asks the account's and the container's server first, which doubles its cost. All changes go
    through the same proxy, which then forgets what it knew.
    """

    def __init__(self) -> None:
        self._kept: dict[str, tuple[float, Any]] = {}
        """Until when it holds, and the value."""

    def get(self, key: str, **_: Any) -> Any:
        ends, value = self._kept.get(key, (0.0, None))
        return value if monotonic() < ends else None

    def set(self, key: str, value: Any, time: float, **_: Any) -> None:
        self._kept[key] = (monotonic() + time, value)

    def delete(self, key: str) -> None:
        self._kept.pop(key, None)


def _run_app(app: Any, server_socket: Any) -> None:
    """Serve `app` like swift's run_server, which would replace the event loop that our four servers share."""
    import eventlet.wsgi
    from swift.common.http_protocol import SwiftHttpProtocol
    from swift.common.utils import NullLogger

    eventlet.wsgi.server(
        server_socket, app, NullLogger(), protocol=SwiftHttpProtocol, capitalize_response_headers=False
    )


def _publish(root: Path, port: int) -> None:
    """Write the port to the ready file; connections are queued from now on."""
    partial = root / f"{READY_FILE}.partial"
    partial.write_text(str(port))
    partial.rename(root / READY_FILE)


def _configure(root: Path, ports: dict[str, int], secret: str) -> None:
    from swift.common.ring import RingBuilder

    root.joinpath("devices", "disk").mkdir(parents=True, exist_ok=True)
    root.joinpath("swift.conf").write_text(SWIFT_CONF)
    for name, port in ports.items():
        builder = RingBuilder(part_power=1, replicas=1, min_part_hours=0)
        place = {"id": 0, "region": 1, "zone": 1, "weight": 1, "device": "disk", "ip": "127.0.0.1", "port": port}
        builder.add_dev({**place, "replication_ip": place["ip"], "replication_port": port})
        builder.rebalance(seed="1")
        builder.get_ring().save(str(root / f"{name}.ring.gz"))
        root.joinpath(f"{name}-server.conf").write_text(BACKEND_CONF.format(root=root, name=name))
    proxy = root / "proxy-server.conf"
    proxy.touch(mode=0o600)
    options = {**OPTIONS, "tempauth": f"user_{ACCESS_KEY.replace(':', '_')} = {secret} .admin"}
    filters = [f"[filter:{name}]\nuse = egg:swift#{name}\n{options.get(name, '')}\n" for name in MIDDLEWARE]
    proxy.write_text(PROXY_CONF.format(root=root, middleware=" ".join(MIDDLEWARE)) + "".join(filters))


def _lock(root: Path) -> TextIO:
    """Lock the folder until this process ends."""
    lock = root.joinpath("lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit(f"{root} is served by another process")
    return lock


def _require_attributes(root: Path) -> None:
    """Exit if the file system lacks extended attributes, in which Swift keeps each object's metadata."""
    with tempfile.NamedTemporaryFile(dir=root) as file:
        try:
            os.setxattr(file.name, "user.swift.metadata", b"1")
        except OSError as error:
            sys.exit(f"{root} is on a file system without extended attributes ({error}); choose another folder")


def main(folder: str) -> None:
    """Serve `folder` until Ctrl-C, and print the variables that a shell must export to use it."""
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background jobs with SIGINT ignored
        signal.signal(number, lambda *_: stop.set())
    with local_s3(Path(folder)) as server:
        for name, value in server.environment.items():
            print(f"export {name}={shlex.quote(value)}")
        print(f"# serving {folder} as process {server.pid}; Ctrl-C stops it", flush=True)
        stop.wait()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        settings = json.loads(sys.argv[2])
        _serve(Path(settings["root"]), settings["port"], settings["parent"])
    elif len(sys.argv) == 2:
        try:
            main(sys.argv[1])
        except OSError as error:
            sys.exit(f"error: {error}")
    else:
        sys.exit("usage: python -m tips_ray.demo.s3_server FOLDER")
