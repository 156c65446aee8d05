"""See where runs stand, stop the start that trains a run, free a run whose start is lost, delete leftovers.

  tips-ray runs list [STORAGE]        every run below a folder or s3:// prefix; default: out/runs
  tips-ray runs show RUN              state, step, losses, speed, starts, bad rows, disk, and what to do next
  tips-ray runs status RUN|STORAGE... for scripts: a line for each run, and an exit code: 0 complete, 10 under way,
                                      75 paused, stopped or killed (the same command goes on), 1 a person must look
  tips-ray runs stop RUN [--pause]    the run saves and leaves with exit code 75; the same command goes on
  tips-ray runs unlock RUN            for a start that will not come back; it can write no checkpoint any more
  tips-ray runs gc RUN|STORAGE... [--dry-run]
                                      deletes what nothing needs: half-written and damaged checkpoints, old leases,
                                      unfinished writes, indexes without a run; leaves runs alone that are trained

  tips-ray runs promote RUN [--champion] [--step N] [--model NAME]
                                      registers a checkpoint in MLflow, the best by evaluation.score or the newest, as
                                      candidate or champion: mlflow.pyfunc.load_model("models:/tips@champion")

Each of them also tells MLflow how a run ended whose start was killed. RUN is a run folder, local or s3://. --json
prints list, show and status for programs. A second start of a run that is being trained is refused; a start whose
process is gone from this machine, or that has been silent for a minute on another, needs no unlock.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.runs.status import RunStatus

ACTIONS = ("list", "show", "status", "stop", "unlock", "gc", "promote")
OF_ONE = ("show", "stop", "unlock", "promote")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray runs`."""
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help=", ".join(ACTIONS))
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folder; of list: the storage of runs")
    parser.add_argument("--pause", action="store_true", help="of stop: note that the run is meant to go on later")
    parser.add_argument("--json", action="store_true", help="of list, show and status: print JSON")
    parser.add_argument("--dry-run", action="store_true", help="of gc: only show what would be deleted")
    parser.add_argument("--champion", action="store_true", help="of promote: give the alias champion, not candidate")
    parser.add_argument("--step", type=int, metavar="N", help="of promote: step of the checkpoint")
    parser.add_argument("--model", default="tips", metavar="NAME", help="of promote: name of the registered model")


def run(arguments: argparse.Namespace) -> int | None:
    """
    Raises:
        ValueError: nothing trains the run, it is no run folder, or its start is alive and must not be unlocked.
    """
    from tips_ray import storage
    from tips_ray.runs import lease
    from tips_ray.runs.folder import require_run

    action, places = arguments.action, [storage.resolved(uri) for uri in arguments.runs]
    _require_arguments(arguments)
    if action == "list":
        return _list(places[0] if places else storage.resolved("out/runs"), arguments.json)
    if action == "status":
        return _status(places, arguments.json)
    if action == "gc":
        return _collect(places, arguments.dry_run)
    require_run(uri := places[0])
    if action == "show":
        return _show(uri, arguments.json)
    if action == "promote":
        return _promote(uri, arguments)
    from tips_ray.runs.status import status_of

    try:
        print(lease.unlock(uri) if action == "unlock" else _stopped(uri, arguments.pause), flush=True)
    finally:
        _tell_ends([status_of(uri)])


def _require_arguments(arguments: argparse.Namespace) -> None:
    action, count = arguments.action, len(arguments.runs)
    if not count and action != "list":
        raise ValueError(f"{action} needs RUN, the folder of a run; tips-ray runs list shows them")
    if count > 1 and action in ("list", *OF_ONE):
        raise ValueError(f"{action} takes one folder, and {count} are given; status and gc take several")
    given = {"json": arguments.json, "dry-run": arguments.dry_run, "pause": arguments.pause}
    given |= {"champion": arguments.champion, "step": arguments.step is not None}
    takes = {"json": ("list", "show", "status"), "dry-run": ("gc",), "pause": ("stop",)}
    takes |= {"champion": ("promote",), "step": ("promote",)}
    for option, is_given in given.items():
        if is_given and action not in takes[option]:
            raise ValueError(f"--{option} is for {', '.join(takes[option])}; {action} does not take it")


def _list(uri: str, is_json: bool) -> None:
    from tips_ray import storage
    from tips_ray.runs import status

    if storage.is_local(uri) and not Path(uri).is_dir():
        raise ValueError(f"{uri}: there is no such folder; give the storage of runs, such as out/runs")
    runs = status.statuses_below(uri)
    if is_json:
        print(json.dumps([status.as_json(one) for one in runs], indent=1), flush=True)
    else:
        print("\n".join(status.list_lines(uri, runs)), flush=True)
    _tell_ends(runs)


def _show(uri: str, is_json: bool) -> None:
    from tips_ray.runs import status

    found = status.status_of(uri)
    print(json.dumps(status.as_json(found), indent=1) if is_json else "\n".join(status.show_lines(found)), flush=True)
    _tell_ends([found])


def _status(places: Sequence[str], is_json: bool) -> int:
    from tips_ray import storage
    from tips_ray.runs import status
    from tips_ray.runs.folder import CONFIG

    found = []
    for uri in places:
        is_run = storage.exists(storage.join(uri, CONFIG))
        here = [status.status_of(uri)] if is_run else status.statuses_below(uri)
        if not here:
            raise ValueError(f"{uri} is no run folder and holds none; tips-ray runs list shows runs")
        found += here
    if is_json:
        print(json.dumps([status.as_json(one) for one in found], indent=1))
    else:
        print("\n".join(map(status.status_line, found)), flush=True)
    _tell_ends(found)
    return status.exit_code(found)


def _promote(uri: str, arguments: argparse.Namespace) -> None:
    from tips_ray.launch.promotion import promote
    from tips_ray.runs.mlflow_access import without_credentials

    done = promote(uri, arguments.model, "champion" if arguments.champion else "candidate", arguments.step)
    before = f"; version {done.before} had it before" if done.before not in (None, done.version) else ""
    print(f"{done.name} version {done.version} (step {done.step} of {uri}) is {done.alias}{before}")
    print(f"next: MLFLOW_TRACKING_URI={without_credentials(done.uri)} python -c \"import mlflow; "
          f"print(mlflow.pyfunc.load_model('models:/{done.name}@{done.alias}'))\"")  # fmt: skip


def _collect(places: Sequence[str], is_dry: bool) -> None:
    from tips_ray.runs import gc

    for uri in places:
        found = gc.find_orphans(uri)
        if not is_dry:
            left, found = found.left, gc.collect(found)
            found.left = [*left, *found.left]
        print("\n".join(gc.lines(found, is_dry)))


def _stopped(uri: str, pause: bool) -> str:
    from tips_ray.runs import lease, stop

    asked = stop.ask_to_stop(uri, stop.user_here(), "pause" if pause else "stop")
    _, holder = lease.newest(uri)
    whom = holder or "whoever trains it (its lease is damaged)"
    return f"asked {whom} to save and leave; a run that is being trained is {asked} after its step"


def _tell_ends(runs: "Sequence[RunStatus]") -> None:
    """Tell MLflow how runs ended whose drivers were killed, after what the user asked for has been printed."""
    from tips_ray.runs.mlflow_ends import tell_ends

    for line in tell_ends(runs):
        sys.stderr.write(f"{line}\n")
