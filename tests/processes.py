"""Processes of this machine, as tests of kills see them."""

import ctypes
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

PR_SET_CHILD_SUBREAPER = 36
TICKS = os.sysconf("SC_CLK_TCK")


class Process(NamedTuple):
    parent: int
    start: str
    """Ticks since the machine started: with the process id it names a process for good."""
    seconds: float
    """Of processors, so far."""


def family(root: int) -> dict[int, Process]:
    """Processes below `root` by process id (needs /proc)."""
    found = dict(_processes())
    return {pid: process for pid, process in found.items() if _is_below(root, pid, found)}


def _processes() -> Iterator[tuple[int, Process]]:
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            fields = path.read_text().rpartition(")")[2].split()
            seconds = (int(fields[11]) + int(fields[12])) / TICKS
            yield int(path.parent.name), Process(int(fields[1]), fields[19], seconds)


def _is_below(root: int, pid: int, processes: Mapping[int, Process]) -> bool:
    while pid in processes and processes[pid].parent != root:
        pid = processes[pid].parent
    return pid in processes


def command_of(pid: int) -> str:
    """Command line of a living process; empty for others."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def adopt_orphans() -> None:
    """Make this process the parent of descendants whose own parents end (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap() -> bool:
    """Take the exit codes of all children that have ended; returns whether others are left."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return False
    return True
