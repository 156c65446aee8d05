"""One command on a cluster of Ray Jobs: its id, what is checked before, its start, and new starts after a loss."""

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from ray.job_submission import JobDetails

from cluster.environment import OWN, Environment
from cluster.following import exit_code, follow, reason
from cluster.job_server import (
    POLL_SECONDS,
    JobExistsError,
    JobServer,
    ServerError,
    UnknownJobError,
    connect,
)
from cluster.names import object_name
from cluster.package import Package, named_files
from tips_ray.config import RunConfig, load_config
from tips_ray.config.sweep import load_sweep
from tips_ray.console import tell
from tips_ray.errors import RunStopped

MISTAKE, INTERRUPTED = 2, 130
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 5.0, 300.0


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


def task(words: Sequence[str]) -> Task:
    """
    Raises:
        ValueError: a config is wrong, or its results would be lost with the job.
    """
    command, *rest = words
    files = named_files(rest)
    configs = [path for path in files if path.suffix in (".yaml", ".yml")]
    files = list(dict.fromkeys([*files, *(named for path in configs for named in _named_in(path))]))
    if command in ("pretrain", "sweep") and configs:
        given = [word for word in rest if "=" in word and not word.startswith("-")]
        config = load_config(RunConfig, configs[0], given) if command == "pretrain" else load_sweep(configs[0], given)
        if "://" not in config.storage and not Path(config.storage).is_absolute():
            raise ValueError(
                f"storage ({config.storage}) would be a folder of the job, which Ray deletes after it: use s3://, or "
                "the whole path of a folder that all nodes share"
            )
        place = f"{config.storage.rstrip('/')}/{config.name}"
        run = config if isinstance(config, RunConfig) else None
        return Task(list(words), object_name(config.name, command, config.storage), config.name, place, run, files)
    return Task(list(words), object_name(command, *rest), command, "", None, files)


def _named_in(path: Path) -> Iterator[Path]:
    """Files that a config names, from the working directory or from its own folder."""
    for text in _texts(yaml.safe_load(path.read_text())):
        yield from named_files([text, str(path.parent / text)] if "\n" not in text else [])


def _texts(tree: Any) -> Iterator[str]:
    if isinstance(tree, str):
        yield tree
    for below in tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list) else ():
        yield from _texts(below)


def live(server: JobServer, stem: str) -> JobDetails | None:
    """The job of this run that has not ended."""
    return next((job for job in attempts(server, stem) if not job.status.is_terminal()), None)


def attempts(server: JobServer, stem: str) -> list[JobDetails]:
    """Jobs of this run, the oldest first."""
    return [job for job in server.jobs() if (job.metadata or {}).get(OWN) == stem]


def start(
    server: JobServer, task: Task, package: Package, environment: Environment, labels: dict[str, str], least: int = 1
) -> str:
    """Hand the command over; returns the job's id.

    Args:
        labels: that the driver's node must have; empty: the head.
        least: smallest number of the attempt.

    Raises:
        JobExistsError: another submit was faster.
        ServerError: it is refused.
    """
    number = max([least, *(_attempt(job) + 1 for job in attempts(server, task.stem))])
    metadata = {OWN: task.stem, "name": task.name, "place": task.place, "command": task.words[0]}
    metadata |= {"attempt": str(number)}
    os.environ.setdefault("RAY_RUNTIME_ENV_IGNORE_GITIGNORE", "1")  # the package is chosen already
    with tempfile.TemporaryDirectory() as folder:
        package.write(Path(folder))
        return server.submit(
            f"{task.stem}-{number}",
            environment.command(task.entrypoint),
            runtime_env=environment.runtime(Path(folder)),
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
            code = exit_code(job := follow(server, job_id, _print))
            ending = f"the job {job_id} ended with code {code}: {reason(job)}"
        except UnknownJobError:
            code, ending = 1, f"the cluster has lost the job {job_id}: its head was started anew"
            if not left:
                raise ServerError(f"{ending}; the same command starts the run again where it stands") from None
        if code in (0, MISTAKE, INTERRUPTED, RunStopped.exit_code) or not left:
            return _told(job_id, code)
        seconds = min(FIRST_WAIT_SECONDS * 2 ** (retries - left), LONGEST_WAIT_SECONDS)
        tell("restart", f"{ending}; it starts again in {seconds:.0f} s ({left} left)", seconds=seconds)
        time.sleep(seconds)
        server = connect(server.address, LONGEST_WAIT_SECONDS)
        job_id = _again(server, job_id, again)
    raise AssertionError("a loop with at least one turn returns")


def _again(server: JobServer, job_id: str, again: Callable[[JobServer, int], str]) -> str:
    stem, _, number = job_id.rpartition("-")
    try:
        return again(server, int(number))
    except JobExistsError:
        running = live(server, stem)
        if running is None or running.submission_id is None:
            raise
        return running.submission_id


def _told(job_id: str, code: int) -> int:
    ending = {0: "is done", RunStopped.exit_code: "was stopped and saved; the same command goes on"}
    tell("end", f"{'end':10} {job_id} {ending.get(code, f'failed with code {code}')}", exit_code=code)
    return code


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def wait_for_end(server: JobServer, job_id: str, seconds: float) -> bool:
    """Whether the job has ended within so many seconds."""
    deadline = time.monotonic() + seconds
    while not server.job(job_id).status.is_terminal():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True
