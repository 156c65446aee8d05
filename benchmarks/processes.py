"""Processor time and memory of a process and its descendants, from /proc (Linux)."""

import os
import threading
import time
from pathlib import Path
from typing import Self

_TICKS = os.sysconf("SC_CLK_TCK")
LOOK_SECONDS = 0.1


class CpuMeter:
    """Measures, inside `with`, the processor time of a process and its descendants, also of those that end.

    The time of a process that nobody waits for (such as Ray's workers) is lost when it ends, so all processes are read
    every LOOK_SECONDS; time after the last reading is missed.
    """

    def __init__(self, root: int, *names: str) -> None:
        """`names`: words in the command lines of processes that are told apart; Ray writes there what they do."""
        self.root, self.names = root, names
        self.seconds_of = dict.fromkeys((*names, "rest"), 0.0)
        """User and system time inside `with` by the first of `names` in a command line at that time; read it after."""
        self._newest: dict[str, float] = {}
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._look_on, daemon=True)

    def __enter__(self) -> Self:
        self._newest = own_seconds(self.root)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ends.set()
        self._thread.join()
        self._look()

    def _look_on(self) -> None:
        while not self._ends.wait(LOOK_SECONDS):
            self._look()
        self.seconds_of["rest"] -= time.thread_time()  # of looking

    def _look(self) -> None:
        for process, seconds in own_seconds(self.root).items():
            command = _command(int(process.split()[0]))
            name = next((name for name in self.names if name in command), "rest")
            self.seconds_of[name] += seconds - self._newest.get(process, 0.0)
            self._newest[process] = seconds


def own_seconds(root: int) -> dict[str, float]:
    """User and system time of `root` and each descendant, without their children's; keys are pid and start time."""
    found = {pid: _fields(pid) for pid in _family(root)}
    return {f"{pid} {of[19]}": sum(map(int, of[11:13])) / _TICKS for pid, of in found.items() if of}


def named_seconds(root: int, *names: str) -> float:
    """User and system time of `root` and those of its descendants whose command lines contain one of `names`."""
    chosen = [pid for pid in _family(root) if any(name in _command(pid) for name in names)]
    return sum(sum(map(int, fields[11:13])) for pid in chosen if (fields := _fields(pid))) / _TICKS


def resident_bytes(root: int, name: str) -> int:
    """Memory of `root` and its descendants whose command line contains `name`."""
    pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in _family(root) if name in _command(pid)]
    return sum(pages) * os.sysconf("SC_PAGE_SIZE")


def _family(root: int) -> list[int]:
    parents = {pid: int(fields[1]) for pid in _pids() if (fields := _fields(pid))}
    found = [root]
    for pid in found:
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _pids() -> list[int]:
    return [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]


def _command(pid: int) -> str:
    """Its command line; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


def _fields(pid: int) -> list[str]:
    """Fields of /proc/PID/stat from the state on; empty if the process is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []
