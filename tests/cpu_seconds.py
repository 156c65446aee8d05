"""Run a command, then print the processor seconds of all processes that it started: `cpu_seconds.py COMMAND ...`.

The speed of a shared machine changes, and a wait costs nothing, so tests are compared by processor seconds. All
descendants are looked at twice a second, since Ray's workers leave their times to nobody: what a process uses after the
last look is not counted. Processes whose parents were killed become children of this one (Linux) and count as well.
"""

import os
import resource
import signal
import sys
import time

from processes import adopt_orphans, command_of, family, reap

LOOK_SECONDS = 0.5
PATIENCE_SECONDS = 20
"""For processes that the command left behind."""


class Seconds:
    """Processor seconds of the descendants of this process, as last seen."""

    def __init__(self) -> None:
        self.of: dict[tuple[int, str], float] = {}
        """By process id and time of start."""

    def look(self) -> None:
        self.of.update({(pid, one.start): one.seconds for pid, one in family(os.getpid()).items()})

    def total(self) -> float:
        """The larger of what was seen and what ended children have left; only the latter is known without /proc."""
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return max(sum(self.of.values()), used.ru_utime + used.ru_stime)


def main(command: list[str]) -> int:
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears Ctrl-C and ends, and with it this process
    begin, seconds, ended, status = time.monotonic(), Seconds(), 0, 0
    child = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGINT])
    while ended != child:
        ended, status = os.waitpid(-1, os.WNOHANG)  # orphans too: nobody else takes their exit codes
        if not ended:
            seconds.look()
            time.sleep(LOOK_SECONDS)
    took, ends = time.monotonic() - begin, time.monotonic() + PATIENCE_SECONDS
    while (are_left := reap()) and time.monotonic() < ends:
        seconds.look()
        time.sleep(0.1)
    print(f"{seconds.total():.0f} processor seconds in {took:.0f} seconds", flush=True)
    if are_left:
        print(f"left behind: {[command_of(pid).replace(chr(0), ' ')[:100] for pid in family(os.getpid())]}", flush=True)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.exit(code if code >= 0 else 128 - code)
