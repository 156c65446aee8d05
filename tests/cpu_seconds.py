"""Run a command, then print the processor seconds of all processes that it started: `cpu_seconds.py COMMAND ...`.

The speed of a shared machine changes, and a wait costs nothing, so tests are compared by processor seconds. Processes
whose parents were killed, as Ray's often are, become children of this one (Linux) and count as well.
"""

import os
import resource
import signal
import sys
import time

from processes import adopt_orphans, reap


def main(command: list[str]) -> int:
    adopt_orphans()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command hears Ctrl-C and ends, and with it this process
    begin, ended, status = time.monotonic(), 0, 0
    child = os.posix_spawnp(command[0], command, os.environ, setsigdef=[signal.SIGINT])
    while ended != child:
        ended, status = os.waitpid(-1, 0)
    reap()
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime
    print(f"{seconds:.0f} processor seconds in {time.monotonic() - begin:.0f} seconds", flush=True)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    code = main(sys.argv[1:])
    sys.exit(code if code >= 0 else 128 - code)
