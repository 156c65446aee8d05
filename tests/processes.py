"""Processes of this machine, as tests of kills see them."""

from pathlib import Path


def family(root: int) -> list[int]:
    """Processes below `root`."""
    found = [root]
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            found += map(int, task.read_text().split())
    return found[1:]


def command_of(pid: int) -> str:
    """Command line of a living process; empty for others."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""
