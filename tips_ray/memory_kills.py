"""How many processes the kernel has ended because memory ran out: the only evidence a machine gives of it."""

from pathlib import Path


def memory_kills(root: Path = Path("/")) -> int:
    """Processes ended so far: of this process's control group, or of the whole machine where no group counts them.

    Args:
        root: where `proc` and `sys` are.
    """
    groups = root / "sys/fs/cgroup"
    places = [groups / path.strip("/") / "memory.events" for path in _groups(root, "")]
    for path in _groups(root, "memory"):
        places += [groups / "memory" / inside / "memory.oom_control" for inside in (path.strip("/"), "")]
    counts = (_count(place) for place in [*places, root / "proc/vmstat"])
    return next((count for count in counts if count is not None), 0)


def memory_kills_since(before: int) -> str:
    """A clause about the processes that were ended since `memory_kills` was `before`; empty if there are none."""
    number = memory_kills() - before
    ended = "a process" if number == 1 else f"{number} processes"
    return f"; this machine ran out of memory meanwhile, and its kernel ended {ended}" if number > 0 else ""


def _groups(root: Path, controller: str) -> list[str]:
    """Paths of this process's group with this controller; the controller of version 2 has no name."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    parts = [line.split(":", 2) for line in lines]
    return [part[2] for part in parts if len(part) == 3 and controller in part[1].split(",")]


def _count(place: Path) -> int | None:
    try:
        lines = place.read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), None)
