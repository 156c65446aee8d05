"""See where runs stand, stop the start that trains a run, or free a run whose start is lost.

  tips-ray runs list [STORAGE]        every run below a folder or s3:// prefix; default: out/runs
  tips-ray runs show RUN              state, step, losses, speed, starts, bad rows, disk, and what to do next
  tips-ray runs stop RUN [--pause]    the run saves and leaves with exit code 75; the same command goes on
  tips-ray runs unlock RUN            for a start that will not come back; it can write no checkpoint any more

Each of them also tells MLflow how a run ended whose start was killed.
RUN is a run folder, local or s3://. A second start of a run that is being trained is refused; a start whose process is
gone from this machine, or that has been silent for a minute on another, needs no unlock.
"""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.runs.status import RunStatus

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
    from tips_ray.runs import lease, status
    from tips_ray.runs.folder import require_run

    if arguments.action == "list":
        runs = status.statuses_below(place := storage.resolved(arguments.run or "out/runs"))
        print("\n".join(status.list_lines(place, runs)), flush=True)
        _tell_ends(runs)
        return
    if arguments.run is None:
        raise ValueError(f"{arguments.action} needs RUN, the folder of a run; tips-ray runs list shows them")
    require_run(uri := storage.resolved(arguments.run))
    if arguments.action == "show":
        print("\n".join(status.show_lines(found := status.status_of(uri))), flush=True)
        _tell_ends([found])
        return
    try:
        print(lease.unlock(uri) if arguments.action == "unlock" else _stopped(uri, arguments.pause), flush=True)
    finally:
        _tell_ends([status.status_of(uri)])


def _stopped(uri: str, is_pause: bool) -> str:
    from tips_ray.runs import lease, stop

    asked = stop.ask_to_stop(uri, stop.user_here(), "pause" if is_pause else "stop")
    _, holder = lease.newest(uri)
    whom = holder or "whoever trains it (its lease is damaged)"
    return f"asked {whom} to save and leave; a run that is being trained is {asked} after its step"


def _tell_ends(runs: "Sequence[RunStatus]") -> None:
    """Tell MLflow how runs ended whose drivers were killed, after what the user asked for has been printed."""
    from tips_ray.runs.mlflow_ends import tell_ends

    for line in tell_ends(runs):
        print(line)
