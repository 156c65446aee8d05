"""Facts of a run as MLflow shows them: command, code, packages and machines as tags and artefacts, config as params."""

import getpass
import json
import os
import platform
import shlex
import socket
import subprocess
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tips_ray.config.run import RunConfig
from tips_ray.runs.loss_health import loss_findings
from tips_ray.runs.mlflow_access import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

GIT_SECONDS = 5.0
"""Longest wait for git, which may look through a large folder on a slow disk."""
MOST_PARAMS = 100  # MLflow's limit per request
MOST_CHARACTERS = 6000  # of a param or tag
NO_PARAMS = ("tracking.tags.", "evaluation.suite.")
"""Keys that are shown elsewhere."""
PACKAGES = {"torch": "torch", "ray": "ray", "tips_ray": "tips-ray"}


def facts_of_start() -> dict[str, str]:
    """Tags of the command that runs in this process: who started what, where, with which code and packages."""
    folder = os.getcwd()
    program, *rest = sys.argv or [""]
    name = "tips-ray" if Path(program).parts[-2:] == ("jobs", "cli.py") else Path(program).name
    command = without_credentials(shlex.join([name, *rest]))[:MOST_CHARACTERS]
    return {
        "mlflow.source.type": "LOCAL",
        "mlflow.source.name": " ".join([name, *rest[:1]]) if name == "tips-ray" else name or "python",
        "mlflow.user": _user(),
        "command": command,
        "host": socket.gethostname(),
        "working_directory": folder,
        **git_facts(folder),
        **{f"version.{name}": text for name, text in versions().items()},
    }


def git_facts(folder: str) -> dict[str, str]:
    """The commit of the repository around a folder, and whether its files differ from it; without git no tags.

    Files that git does not know do not count.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    dirty = {} if changed is None else {"git.dirty": "true" if changed else "false"}
    branch = _git(folder, "rev-parse", "--abbrev-ref", "HEAD")
    named = {"mlflow.source.git.branch": branch} if branch and branch != "HEAD" else {}
    return {"mlflow.source.git.commit": commit, **named, **dirty}


def _git(folder: str, *arguments: str) -> str | None:
    """What git prints; None: there is no git, no repository, or no answer."""
    command = ["git", "--no-optional-locks", "-C", folder, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=GIT_SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user without a name
        return "unknown"


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    found = {"python": platform.python_version()}
    for name, package in PACKAGES.items():
        try:
            found[name] = version(package)
        except PackageNotFoundError:
            pass
    return found


def packages() -> str:
    """All installed packages as lines of `name==version`, by the names of their folders: to read each takes seconds."""
    found: dict[str, str] = {}
    for place in sys.path:
        for folder in Path(place).glob("*.dist-info"):
            name, _, number = folder.stem.partition("-")
            found.setdefault(name.lower(), f"{name}=={number}")
    return "".join(f"{found[name]}\n" for name in sorted(found))


def log_tags(client: "MlflowClient", run: "Run", tags: Mapping[str, str]) -> None:
    """Set the tags that differ from those of the run."""
    from mlflow.entities import RunTag

    known, cut = run.data.tags, {name: value[:MOST_CHARACTERS] for name, value in tags.items()}
    changed = [RunTag(name, value) for name, value in cut.items() if known.get(name) != value]
    if changed:
        client.log_batch(run.info.run_id, tags=changed)


def log_files(client: "MlflowClient", run_id: str, config: RunConfig) -> None:
    """The resolved config as `config.yaml`, the installed packages as `environment/packages.txt`."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    client.log_text(run_id, without_credentials(text), "config.yaml")
    client.log_text(run_id, packages(), "environment/packages.txt")


def log_cluster(client: "MlflowClient", run: "Run", nodes: list[dict[str, Any]]) -> None:
    """The nodes of the cluster as the tag `cluster` and the artefact `environment/cluster.json`.

    Args:
        client: of MLflow.
        run: that has been started on the cluster.
        nodes: each with `host`, `cpus`, `gpus`, `memory_gib` and `kinds`, the kinds of its GPUs.
    """
    cpus, gpus = (sum(node[key] for node in nodes) for key in ("cpus", "gpus"))
    kinds = sorted({kind for node in nodes for kind in node["kinds"]})
    named = f" ({', '.join(kinds)})" if kinds else ""
    told = f"{len(nodes)} node{'s' if len(nodes) > 1 else ''}, {cpus:g} CPUs, {gpus:g} GPUs{named}"
    log_tags(client, run, {"cluster": told})
    client.log_text(run.info.run_id, json.dumps(nodes, indent=1), "environment/cluster.json")


def machine_tags(events: list[dict[str, Any]]) -> dict[str, str]:
    """The machines of the workers, by the newest start in the run folder."""
    start = next((event for event in reversed(events) if "machine" in event), None)
    if start is None:
        return {}
    machine, workers = start["machine"], start["workers"]
    hosts = f"{machine['hosts']} host{'s' if machine['hosts'] > 1 else ''}"
    parts = [f"{workers} worker{'s' if workers > 1 else ''} on {hosts}", f"{machine['cores']} cores", machine["memory"]]
    return {"machine": ", ".join([*parts, f"accelerators: {machine['accelerators']}"])}


def health_tags(config: RunConfig, lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """What is to be said of the run's losses, with cures, as the tag `health`: what is ill first; else its level."""
    findings = loss_findings(config, lines)
    told = [
        f"{one.level}: {one.about}: {one.seen}; try: {one.cure}" for one in findings if one.level in ("ill", "watch")
    ]
    return {"health": "\n".join(told) or findings[0].level} if findings else {}


def log_params(client: "MlflowClient", run: "Run", config: RunConfig) -> None:
    """A param never changes in MLflow; a field that a resume changed becomes a tag."""
    from mlflow.entities import Param

    flat = {key: value for key, value in _flat(config.model_dump()) if not key.startswith(NO_PARAMS)}
    values = {key: without_credentials(str(value))[:MOST_CHARACTERS] for key, value in flat.items()}
    known = run.data.params
    params = [Param(key, value) for key, value in values.items() if key not in known]
    for start in range(0, len(params), MOST_PARAMS):
        client.log_batch(run.info.run_id, params=params[start : start + MOST_PARAMS])
    changed = {f"changed.{key}": value for key, value in values.items() if known.get(key, value) != value}
    log_tags(client, run, changed)


def log_data(client: "MlflowClient", run: "Run", config: RunConfig, fingerprint: str | None) -> None:
    """The sources of the data, which MLflow shows as datasets; once for each run."""
    from mlflow.data.dataset_source_registry import resolve_dataset_source
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput

    digest = fingerprint and fingerprint[:36]
    if run.inputs and run.inputs.dataset_inputs:
        return
    for source in config.data.sources:
        uri = without_credentials(source.uri)
        with warnings.catch_warnings(action="ignore"):  # it finds several classes for a local path, all alike
            data = MetaDataset(resolve_dataset_source(uri), name=uri, digest=digest)
        client.log_inputs(run.info.run_id, [DatasetInput(data._to_mlflow_entity())])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
