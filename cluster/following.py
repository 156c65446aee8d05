"""Following a job: what it prints, over lost connections, until it has ended; its status is the truth, not the log."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import aiohttp
from ray.job_submission import JobDetails, JobStatus

from cluster.job_server import JobServer, ServerError, UnknownJobError, UnreachableError, patiently
from tips_ray.console import tell
from tips_ray.errors import RunStopped

LOST_SECONDS = 600.0
"""Longest time without an answer of the cluster, after which nobody knows what became of the job."""
SILENT_SECONDS = 60.0
"""After this time without a line the status is asked, and whether the log has grown: a connection can die unnoticed."""
PENDING_SECONDS = 15.0
POLL_SECONDS = 1.0
LOST = (aiohttp.ClientError, UnreachableError, RuntimeError, OSError, asyncio.TimeoutError)


def follow(server: JobServer, job_id: str, write: Callable[[str], object]) -> JobDetails:
    """Write what the job prints, each character once, until it has ended.

    Args:
        server: that has the job.
        job_id: its submission id.
        write: takes a piece of the log.

    Raises:
        UnknownJobError: the server has no such job, or no longer.
        UnreachableError: it has not answered for ten minutes.
    """
    try:
        return _followed(server, job_id, _Log(write))
    except WriteError as error:
        raise error.args[0] from None


def _followed(server: JobServer, job_id: str, log: "_Log") -> JobDetails:
    _wait_for_start(server, job_id)
    has_told = False
    while not (job := _job(server, job_id)).status.is_terminal():
        try:
            asyncio.run(_tail(server, job_id, log))
        except LOST as error:
            if not has_told and not isinstance(error, UnknownJobError):
                tell(
                    "wait", f"{'wait':10} the log's connection was lost ({error}); the job goes on, and so does its log"
                )
                has_told = True
        time.sleep(POLL_SECONDS)
    try:
        log.see_all(server.log(job_id))
    except ServerError as error:
        tell("log", f"{'log':10} the end of the log is not to be had: {error}")
    return job


def exit_code(job: JobDetails) -> int:
    """The exit code of the job's command; 75 of a job that was stopped, 1 where there is none, or a signal ended it."""
    if job.status == JobStatus.SUCCEEDED:
        return 0
    if job.status == JobStatus.STOPPED:
        return RunStopped.exit_code
    return job.driver_exit_code if job.driver_exit_code and job.driver_exit_code > 0 else 1


def reason(job: JobDetails) -> str:
    """Why the job is in its state, without the end of its log, which Ray adds."""
    lines = (job.message or "").split(", last available logs")[0].strip().splitlines()
    return lines[0] if lines else str(job.status)


class WriteError(Exception):
    """The log cannot be written where it should go: the pipe is closed, or the disk is full."""


class _Log:
    """What was written so far; the server always begins at the start of the log."""

    def __init__(self, write: Callable[[str], object]) -> None:
        self._write, self.written, self._read = write, 0, 0

    def begin(self) -> None:
        """A new connection begins."""
        self._read = 0

    def see(self, text: str) -> None:
        """Write what of the next piece of this connection is new."""
        new = text[max(0, self.written - self._read) :]
        if new:
            try:
                self._write(new)
            except OSError as error:  # not a lost connection
                raise WriteError(error) from None
        self._read += len(text)
        self.written = max(self.written, self._read)

    def see_all(self, text: str) -> None:
        """Write what of the whole log is new."""
        self.begin()
        self.see(text)


async def _tail(server: JobServer, job_id: str, log: _Log) -> None:
    """Write the log until its connection ends, the job has ended, or the connection is dead."""
    log.begin()
    pieces = aiter(server.tail(job_id))
    while True:
        piece = asyncio.ensure_future(_next(pieces))
        while not (await asyncio.wait({piece}, timeout=SILENT_SECONDS))[0]:
            if await asyncio.to_thread(_is_dead, server, job_id, log):
                piece.cancel()
                return
        if (text := piece.result()) is None:
            return
        log.see(text)


async def _next(pieces: Any) -> str | None:
    return await anext(pieces, None)


def _is_dead(server: JobServer, job_id: str, log: _Log) -> bool:
    return server.job(job_id).status.is_terminal() or len(server.log(job_id)) > log.written


def _job(server: JobServer, job_id: str) -> JobDetails:
    return patiently(lambda: server.job(job_id), LOST_SECONDS, f"the cluster at {server.address}")


def _wait_for_start(server: JobServer, job_id: str) -> None:
    """Say what a job waits for that does not start."""
    begun, told = time.monotonic(), ""
    while (job := _job(server, job_id)).status == JobStatus.PENDING:
        if time.monotonic() - begun > PENDING_SECONDS and job.message and job.message != told:
            told = job.message
            tell("pending", f"{'pending':10} {' '.join(told.split())}")
        time.sleep(POLL_SECONDS)
