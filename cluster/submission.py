"""One command on a cluster of Ray Jobs: its id, what is checked before, its start, and new starts after a loss."""

import os
import shlex
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import yaml
from ray.job_submission import JobDetails, JobStatus

from cluster.checks import texts
from cluster.environment import OWN, Environment
from cluster.following import LOST_SECONDS, exit_code, follow, reason
from cluster.job_server import (
    POLL_SECONDS,
    JobExistsError,
    JobServer,
    ServerError,
    UnknownJobError,
    UnreachableError,
    connect,
    patiently,
)
from cluster.names import object_name
from cluster.package import named_files, require_no_password
from tips_ray.config import RunConfig, load_config
from tips_ray.config.sweep import load_sweep
from tips_ray.console import tell
from tips_ray.errors import RunStopped

MISTAKE, INTERRUPTED = 2, 130
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 300.0
WITH_RUN = ("pretrain", "caption", "index")
"""Commands whose config is that of a run."""


class Task(NamedTuple):
    """A command of `tips-ray` for a cluster."""

    words: list[str]
    """The command and its arguments."""
    stem: str
    """Id without the attempt: equal for the same run or sweep, and for the same words of another command."""
    name: str
    place: str
    """URI of the run folder or of the sweep's; empty for other commands."""
    run: RunConfig | None
    """Of `pretrain`."""
    files: list[Path]
    """Local files that the words and configs name."""

    @property
    def entrypoint(self) -> str:
        supervise = ["--supervise"] if self.words[0] == "pretrain" and "--supervise" not in self.words else []
        return shlex.join(["tips-ray", *self.words, *supervise])


def task(words: Sequence[str], arguments: Namespace) -> Task:
    """
    Args:
        words: the command and its arguments.
        arguments: as the command's own parser reads them.

    Raises:
        ValueError: a config is wrong, or results would be lost with the job.
    """
    command, files = words[0], _files(words[1:])
    require_no_password(words)
    if command == "sweep":
        config = load_sweep(arguments.config, arguments.overrides)
    elif command in WITH_RUN:
        config = load_config(RunConfig, arguments.config, arguments.overrides)
    else:
        _require_kept(command, arguments)
        return Task(list(words), object_name(command, *words[1:]), command, "", None, files)
    _require_shared("storage", config.storage)
    for number, source in enumerate(config.data.sources if isinstance(config, RunConfig) else ()):
        why = "is a path from this folder, and data do not travel with a job"
        _require_shared(f"data.sources.{number}.uri", source.uri, why)
    if command not in ("pretrain", "sweep"):
        name = f"{command}-{config.name}"
        return Task(list(words), object_name(name, *words[1:]), name, "", None, files)
    storage = config.storage.rstrip("/")
    run = config if isinstance(config, RunConfig) else None
    stem = object_name(config.name, command, storage)
    return Task(list(words), stem, config.name, f"{storage}/{config.name}", run, files)


def _require_kept(command: str, arguments: Namespace) -> None:
    """
    Raises:
        ValueError: what the command writes would be lost with the job.
    """
    if command == "evaluate":
        _require_shared("--output", arguments.output or "out/evaluation")
    elif command == "ablate":
        _require_shared("--output", arguments.output)
    elif command == "embed":
        _require_shared("OUT", arguments.out)
    elif command == "export":
        _require_shared("OUT", arguments.paths[-1])


def _require_shared(
    key: str, place: str, why: str = "would be a folder of the job, which Ray deletes after it"
) -> None:
    """
    Raises:
        ValueError: the place is named from this folder; `why` says what that means there.
    """
    if "://" not in place and not Path(place).is_absolute():
        raise ValueError(f"{key} ({place}) {why}: use s3://, or the whole path of a folder that all nodes share")


def _files(words: Sequence[str]) -> list[Path]:
    """Local files that the words name, and those that configs among them name, and so on."""
    named = [text for word in words if "=" in word for text in _texts_of(word.partition("=")[2])]
    left = [*named_files(words), *_relative(named, Path())]
    found: dict[Path, None] = {}
    while left:
        path = left.pop(0)
        if path in found:
            continue
        found[path] = None
        if path.suffix in (".yaml", ".yml"):
            left += _relative(_texts_of(path), path.parent)
    return list(found)


def _relative(named: Iterable[str], folder: Path) -> list[Path]:
    """Files that a config in `folder` names from there or from here; a whole path is one of the cluster's nodes."""
    near = [text for text in named if "\n" not in text and not Path(text).is_absolute()]
    return named_files([*near, *(str(folder / text) for text in near)])


def _texts_of(source: Path | str) -> list[str]:
    """Every text of a YAML file or value; none of what is no YAML, which its own reader will tell."""
    try:
        tree = yaml.safe_load(source.read_text() if isinstance(source, Path) else source)
        return [text for _, text in texts(tree)]
    except (yaml.YAMLError, ValueError, OSError, RecursionError):
        return []


def live(server: JobServer, stem: str) -> JobDetails | None:
    """The job of this run that has not ended."""
    return _alive(attempts(server, stem))


def _alive(jobs: Iterable[JobDetails]) -> JobDetails | None:
    return next((job for job in jobs if not job.status.is_terminal()), None)


def attempts(server: JobServer, stem: str) -> list[JobDetails]:
    """Jobs of this run, the oldest first."""
    return [job for job in server.jobs() if (job.metadata or {}).get(OWN) == stem]


def start(
    server: JobServer, task: Task, folder: Path, environment: Environment, labels: dict[str, str], least: int = 1
) -> str:
    """Hand the command over; returns the job's id.

    Args:
        folder: of the package's files.
        labels: that the driver's node must have; empty: the head.
        least: smallest number of the attempt.

    Raises:
        JobExistsError: another submit was faster.
        ServerError: it is refused.
    """
    known = attempts(server, task.stem)
    if there := _alive(known):
        raise JobExistsError(f"the job {there.submission_id} does this already")
    number = max([least, *(_attempt(job) + 1 for job in known)])
    metadata = {OWN: task.stem, "name": task.name, "place": task.place, "command": task.words[0]}
    metadata |= {"attempt": str(number)}
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")  # the package is chosen already
    return server.submit(
        f"{task.stem}-{number}",
        environment.command(task.entrypoint),
        runtime_env={"working_dir": str(folder)},
        metadata=metadata,
        entrypoint_label_selector=labels or None,
    )


def _attempt(job: JobDetails) -> int:
    number = (job.metadata or {}).get("attempt", "0")
    return int(number) if number.isdigit() else 0


def watch(server: JobServer, job_id: str, retries: int, again: Callable[[JobServer, int], str]) -> int:
    """Follow a job to its end, and start it again after a loss; returns the exit code of its command.

    Args:
        job_id: of the job.
        retries: how often it may be started again.
        again: starts it with an attempt's number above the given one; returns the new job's id.

    Raises:
        ServerError: the cluster has lost the job or does not answer, and there is no retry left.
    """
    for left in range(retries, -1, -1):
        try:
            job = follow(server, job_id, _print)
            code = exit_code(job)
            ending = f"the job {job_id} ended with code {code}: {reason(job)}"
            if code in (0, MISTAKE, INTERRUPTED, RunStopped.exit_code) or not left:
                return _told(job)
        except UnknownJobError:
            ending = f"the cluster has lost the job {job_id}: its head was started anew"
            if not left:
                raise ServerError(f"{ending}; the same command starts the run again where it stands") from None
        except UnreachableError as error:
            ending = str(error)
            if not left:
                raise
        seconds = min(FIRST_WAIT_SECONDS * 2 ** (retries - left), LONGEST_WAIT_SECONDS)
        tell("restart", f"{ending}; it starts again in {seconds:.0f} s ({left} left)", seconds=seconds)
        time.sleep(seconds)
        server = connect(server.address, LOST_SECONDS)
        job_id = _again(server, job_id, again)
    raise AssertionError("a loop with at least one turn returns")


def _again(server: JobServer, job_id: str, again: Callable[[JobServer, int], str]) -> str:
    """Start the job again unless it lives, or another submit has started it."""
    stem, _, number = job_id.rpartition("-")
    whom = f"the cluster at {server.address}"
    try:
        return patiently(lambda: again(server, int(number)), LOST_SECONDS, whom)
    except JobExistsError:
        running = patiently(lambda: live(server, stem), LOST_SECONDS, whom)
        if running is None or running.submission_id is None:
            raise
        return running.submission_id


def _told(job: JobDetails) -> int:
    code = exit_code(job)
    ending = {0: "is done", RunStopped.exit_code: "was stopped and saved; the same command goes on"}
    text = ending.get(code, f"failed with code {code}" if job.driver_exit_code else f"failed: {reason(job)}")
    if job.status == JobStatus.STOPPED:
        text = "was stopped by Ray, perhaps before it could save; the same command goes on from its newest checkpoint"
    tell("end", f"{'end':10} {job.submission_id} {text}", exit_code=code)
    return code


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def wait_for_end(server: JobServer, job_id: str, seconds: float) -> bool:
    """Whether the job has ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while not patiently(lambda: server.job(job_id), seconds, "the cluster").status.is_terminal():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
