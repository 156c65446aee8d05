"""Processor time and memory of a process and all below it, from /proc (Linux)."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def cpu_seconds(root: int) -> float:
    """User and system time of `root` and all its descendants, those that ended and were waited for included."""
    return sum(sum(map(int, _fields(pid)[11:15])) for pid in _family(root)) / _TICKS


def resident_bytes(root: int, name: str) -> int:
    """Memory of the descendants of `root` whose command line has `name` in it."""
    pages = [
        int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        for pid in _family(root)
        if name in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
    ]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def _family(root: int) -> list[int]:
    parents = {pid: int(_fields(pid)[1]) for pid in _pids() if _fields(pid)}
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return [pid for pid in found if _fields(pid)]


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _fields(pid: int) -> list[str]:
    """Of /proc/PID/stat from the state on; empty where the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
