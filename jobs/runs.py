"""See where runs stand, stop the start that trains a run, or free a run whose start is lost.

  tips-ray runs list [STORAGE]        every run below a folder or s3:// prefix; default: out/runs
  tips-ray runs show RUN              state, step, losses, speed, starts, bad rows, disk, and what to do next
  tips-ray runs stop RUN [--pause]    the run saves and leaves with exit code 75; the same command goes on
  tips-ray runs unlock RUN            for a start that will not come back; it can write no checkpoint any more

RUN is a run folder, local or s3://. A second start of a run that is being trained is refused; a start whose process is
gone from this machine, or that has been silent for a minute on another, needs no unlock.
"""

import argparse

ACTIONS = ("list", "show", "stop", "unlock")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray runs`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("run", nargs="?", metavar="RUN", help="run folder; of list: the storage of runs")
    parser.add_argument("--pause", action="store_true", help="of stop: note that the run is meant to go on later")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: nothing trains the run, it is no run folder, or its start is alive and must not be unlocked.
    """
    from tips_ray import storage
    from tips_ray.runs import lease, status, stop
    from tips_ray.runs.folder import require_run

    if arguments.action == "list":
        print("\n".join(status.list_lines(storage.resolved(arguments.run or "out/runs"))))
        return
    if arguments.run is None:
        raise ValueError(f"{arguments.action} needs RUN, the folder of a run; tips-ray runs list shows them")
    require_run(uri := storage.resolved(arguments.run))
    if arguments.action == "show":
        print("\n".join(status.show_lines(uri)))
        return
    if arguments.action == "unlock":
        print(lease.unlock(uri))
        return
    asked = stop.ask_to_stop(uri, stop.user_here(), "pause" if arguments.pause else "stop")
    _, holder = lease.newest(uri)
    whom = holder or "whoever trains it (its lease is damaged)"
    print(f"asked {whom} to save and leave; a run that is being trained is {asked} after its step")
