"""Stop the start that trains a run, or free a run whose start is lost.

  tips-ray runs stop RUN [--pause]    the run saves and leaves with exit code 75; the same command goes on
  tips-ray runs unlock RUN            for a start that will not come back; it can write no checkpoint any more

RUN is a run folder, local or s3://. A second start of a run that is being trained is refused; a start whose process is
gone from this machine, or that has been silent for a minute on another, needs no unlock.
"""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray runs`."""
    parser.add_argument("action", choices=("stop", "unlock"), metavar="ACTION", help="stop or unlock")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--pause", action="store_true", help="stop, and note that the run is meant to go on later")


def run(arguments: argparse.Namespace) -> None:
    """
    Raises:
        ValueError: nothing trains the run, it is no run folder, or its start is alive and must not be unlocked.
    """
    from tips_ray import storage
    from tips_ray.runs import lease, stop
    from tips_ray.runs.folder import require_run

    require_run(uri := storage.resolved(arguments.run))
    if arguments.action == "unlock":
        print(lease.unlock(uri))
        return
    asked = stop.ask_to_stop(uri, stop.user_here(), "pause" if arguments.pause else "stop")
    _, holder = lease.newest(uri)
    whom = holder or "whoever trains it (its lease is damaged)"
    print(f"asked {whom} to save and leave; a run that is being trained is {asked} after its step")
