"""How a cluster gets `tips-ray`, and whether its versions go together with those here."""

import json
import platform
import shlex
import time
import tomllib
import uuid
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from packaging.version import Version

from cluster.job_server import POLL_SECONDS, JobExistsError, JobServer, ServerError, patiently
from tips_ray.console import tell

OWN = "tips_ray"
"""Key of a job's metadata that only jobs of `tips-ray submit` have; its value is the id without the attempt."""
CHECK_MARK, OLD_SECONDS = "check", 600
CHECK_SECONDS = 180.0
"""Longest time of the job that asks for versions; an agent that has just started takes a minute."""
CHECK = """
import importlib.metadata as m, json, platform, shutil
def version(name):
    try: return m.version(name)
    except Exception: return None
print("tips_ray " + json.dumps({"python": platform.python_version(), "tips_ray": version("tips-ray"),
      "ray": version("ray"), "command": shutil.which("tips-ray"), "uv": shutil.which("uv")}))
"""


class Environment(NamedTuple):
    """How the cluster gets `tips-ray`: from its image, or by uv from the project that travels."""

    kind: str
    python: str = ""
    """Version that uv uses: that of the cluster's Ray."""

    def command(self, entrypoint: str) -> str:
        """The entrypoint in its environment; Ray starts workers below `uv run` in the same one (its uv hook)."""
        return f"uv run --frozen --no-dev --python {self.python} {entrypoint}" if self.kind == "uv" else entrypoint


def checked(server: JobServer, kind: str) -> Environment:
    """The environment, once the versions of both sides have been compared.

    Raises:
        ServerError: they do not go together, or the cluster lacks `tips-ray` or uv.
    """
    own = {"python": platform.python_version(), "ray": version("ray"), "tips_ray": version("tips-ray")}
    found = _asked(server)
    if Version(found["ray"] or server.version).release[:2] != Version(own["ray"]).release[:2]:
        raise ServerError(
            f"the cluster has Ray {found['ray']}, here is {own['ray']}: use an image of the cluster with Ray "
            f"{own['ray']}, or install ray=={found['ray']} here"
        )
    if kind == "uv":
        _require_uv(found)
        return Environment(kind, found["python"])
    if not found["tips_ray"] or not found["command"]:
        raise ServerError(
            "the cluster's Python has no tips-ray: use an image with it (cluster/Dockerfile), or --env uv from a "
            "project that depends on it"
        )
    if found["tips_ray"] != own["tips_ray"]:
        raise ServerError(
            f"the cluster has tips-ray {found['tips_ray']}, here is {own['tips_ray']}: a config of one may mean "
            "something else in the other; install the same here, or use an image with it"
        )
    both = ", ".join(f"{name.replace('_', '-')} {found[name]}" for name in ("python", "ray", "tips_ray"))
    tell("cluster", f"{'cluster':10} {server.address}: {both}")
    return Environment(kind)


def _require_uv(found: dict[str, Any]) -> None:
    if not found["uv"]:
        raise ServerError("the cluster has no uv on the PATH of its nodes: install it in the image, or use --env image")
    lock = Path("uv.lock")
    if not lock.is_file() or not Path("pyproject.toml").is_file():
        raise ServerError(
            "--env uv needs pyproject.toml and uv.lock in this folder: write them with uv init and uv lock"
        )
    locked = {one["name"]: one.get("version") for one in tomllib.loads(lock.read_text()).get("package", [])}
    if locked.get("ray") != found["ray"]:
        raise ServerError(
            f"uv.lock has Ray {locked.get('ray') or 'nowhere'}, the cluster {found['ray']}: add ray=={found['ray']} "
            "to the project and run uv lock"
        )


def _asked(server: JobServer) -> dict[str, Any]:
    """What a small job on the cluster says of its versions; it shows too that the agent starts jobs."""
    _forget_old_checks(server)
    job_id = f"tips-ray-check-{uuid.uuid4().hex[:8]}"
    entrypoint = f"python -c {shlex.quote(CHECK)} || python3 -c {shlex.quote(CHECK)}"
    whom = f"the job agent of {server.address}"
    with suppress(JobExistsError):  # its first answer was lost on the way
        patiently(lambda: server.submit(job_id, entrypoint, metadata={OWN: CHECK_MARK}), CHECK_SECONDS, whom)
    deadline = time.monotonic() + CHECK_SECONDS
    while not (job := patiently(lambda: server.job(job_id), CHECK_SECONDS, whom)).status.is_terminal():
        if time.monotonic() > deadline:
            server.stop(job_id)
            raise ServerError(
                f"the cluster has not started a small job in {CHECK_SECONDS:.0f} s: {job.message or job.status}; look "
                "at the head's dashboard_agent.log and at its free memory and disk"
            )
        time.sleep(POLL_SECONDS / 4)
    log = server.log(job_id)
    for line in log.splitlines():
        if line.startswith("tips_ray {"):
            return json.loads(line.removeprefix("tips_ray "))
    raise ServerError(f"the cluster runs no Python: {(job.message or log).strip().splitlines()[-1:] or job.status}")


def _forget_old_checks(server: JobServer) -> None:
    """Delete checks that nobody waits for any more; Ray would note the end of one that is deleted at once."""
    for job in server.jobs():
        is_old = (job.end_time or 0) / 1000 < time.time() - OLD_SECONDS
        if (job.metadata or {}).get(OWN) == CHECK_MARK and job.status.is_terminal() and is_old:
            with suppress(ServerError):  # another submit was faster
                server.forget(str(job.submission_id))
