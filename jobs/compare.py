"""Compare runs: what differs in their configs, and which metrics are better, worse, or give no claim.

  tips-ray compare out/runs/a out/runs/b                      the first run's setting is the baseline
  tips-ray compare out/runs/* --baseline out/runs/plain-0 --metric loss/total --metric grad_norm:lower
  tips-ray compare --experiment tips --mlflow-uri sqlite:///out/runs/mlflow.db --html compare.html
  tips-ray compare out/runs/a out/runs/b --html compare.html --images photos/    or scenes, which need no files
  tips-ray compare --sweep alpha --at gpu-hours               from MLflow at MLFLOW_TRACKING_URI
  tips-ray compare out/runs/* --csv runs.csv --json runs.json a line for each run and metric; all that is shown

Runs that differ by their seed alone are one setting. Runs of two settings that saw the same batches are pairs: data,
vocabulary, seed, batch size and views must be equal, the number of workers need not. A claim needs six pairs.
Runs of other tools in MLflow are compared by their params and metrics; see docs/compare.md.
"""

import argparse
from collections.abc import Callable, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from tuning.comparison import MEASURES

if TYPE_CHECKING:
    from tuning.comparison.compare import Comparison
    from tuning.comparison.run import ComparedRun
    from tuning.comparison.setting import Setting
    from tuning.comparison.slider import Looks

METRIC = "loss/total"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray compare`."""
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders, local or s3://")
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--experiment", metavar="NAME", help="all runs of an experiment of MLflow")
    source.add_argument("--sweep", metavar="NAME", help="all runs of MLflow with this tag `sweep`")
    parser.add_argument("--mlflow-uri", metavar="URI", help="default: the variable MLFLOW_TRACKING_URI")
    parser.add_argument("--baseline", metavar="RUN", help="a run of the setting that others are compared with")
    parser.add_argument(
        "--metric", action="append", metavar="NAME[:higher|:lower]", help=f"default: {METRIC}; may be given again"
    )
    parser.add_argument("--at", choices=MEASURES, default="step", help="compare at equal steps, images or GPU-hours")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="PARAM", help="may differ within a setting, such as 'output_*'"
    )
    parser.add_argument("--leave-out", action="append", default=[], metavar="RUN", help="name or id of a run of MLflow")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write final, best and equal-step values of each run")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that is shown")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write one page with tables and plots")
    parser.add_argument(
        "--images", metavar="IMAGES", help="of --html: what the runs see in these files at each checkpoint; or scenes"
    )


def run(arguments: argparse.Namespace) -> None:
    """Read the runs and print the comparison.

    Raises:
        ValueError: there are fewer than two runs, one is no run folder, or they have no metric in common.
    """
    from tuning.comparison.compare import compared
    from tuning.comparison.setting import metric_of
    from tuning.comparison.text import lines_of

    if arguments.images and not arguments.html:
        raise ValueError(f"--images ({arguments.images}) is shown on the page: give --html FILE as well")
    metrics = [metric_of(text) for text in arguments.metric or [METRIC]]
    runs, left_out = _runs(arguments, [metric.name for metric in metrics])
    runs, baseline_of = _with_baseline(arguments.baseline, runs)
    if len(runs) < 2:
        raise ValueError(f"{runs[0].label} is the only run: give another one to compare it with")
    found = compared(runs, metrics, baseline_of, arguments.at, arguments.ignore, left_out)
    print("\n".join(lines_of(found)))
    _write(arguments, found)


def _runs(arguments: argparse.Namespace, metrics: Sequence[str]) -> "tuple[list[ComparedRun], list[str]]":
    """Runs in the order in which they are shown, and sentences about those that are left out."""
    from tips_ray.runs.mlflow_note import stored_run_id
    from tuning.comparison.mlflow import runs_of_mlflow, selection
    from tuning.comparison.run import run_of_folder

    option, name = ("--sweep", arguments.sweep) if arguments.sweep else ("--experiment", arguments.experiment)
    _require_source(arguments, name)
    folders = {found.uri: found for found in map(run_of_folder, arguments.runs)}
    if not name:
        return list(folders.values()), []
    chosen = selection(option, name, arguments.mlflow_uri)
    known = [run_id for run_id in map(stored_run_id, folders) if run_id]
    there = runs_of_mlflow(chosen, metrics, arguments.leave_out, known)
    return [*folders.values(), *there.runs], there.left_out


def _require_source(arguments: argparse.Namespace, name: str | None) -> None:
    if not name and not arguments.runs and not arguments.baseline:
        raise ValueError("there are no runs to compare: give two run folders, or --experiment or --sweep")
    of_mlflow = {"--mlflow-uri": arguments.mlflow_uri, "--leave-out": ", ".join(arguments.leave_out)}
    for key, value in of_mlflow.items():
        if value and not name:
            raise ValueError(f"{key} ({value}) is about runs of MLflow: give --experiment or --sweep beside it")


def _with_baseline(
    given: str | None, runs: "list[ComparedRun]"
) -> "tuple[list[ComparedRun], Callable[[Sequence[Setting]], Setting]]":
    """All runs, with that of the baseline if it is a further run folder, and what chooses the baseline's setting.

    Raises:
        ValueError: the baseline is no run.
    """
    from tips_ray import storage
    from tips_ray.errors import listed
    from tips_ray.runs.folder import CONFIG
    from tuning.comparison.run import run_of_folder

    if given is None:
        return runs, lambda settings: settings[0]
    names = {given, storage.resolved(given)}
    if not any(names & {run.uri, run.name} for run in runs):
        if not storage.exists(storage.join(storage.resolved(given), CONFIG)):
            there = listed(run.name for run in runs)
            raise ValueError(f"--baseline ({given}) is no run folder and none of these runs: {there}")
        runs = [*runs, run_of_folder(given)]
    return runs, lambda settings: _setting_of(given, names, settings)


def _setting_of(given: str, names: set[str], settings: "Sequence[Setting]") -> "Setting":
    found = [setting for setting in settings if any(names & {run.uri, run.name} for run in setting.runs)]
    exact = [setting for setting in settings if any(run.uri in names for run in setting.runs)]
    if len(found) > 1 and not exact:
        ids = ", ".join(run.uri for setting in found for run in setting.runs if run.name in names)
        raise ValueError(f"--baseline ({given}) is the name of runs of {len(found)} settings: give one of {ids}")
    return (exact or found)[0]


def _write(arguments: argparse.Namespace, found: "Comparison") -> None:
    from tuning.comparison.files import write_csv, write_json
    from tuning.comparison.page import write_page

    def page(path: Path, found: "Comparison") -> None:
        write_page(path, found, _looks(arguments.images, found))

    for path, write in ((arguments.csv, write_csv), (arguments.json, write_json), (arguments.html, page)):
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, found)
            print(path)


def _looks(images: str | None, found: "Comparison") -> "Looks | None":
    """Pictures of the first run of each setting, then of the others."""
    if images is None:
        return None
    from tuning.comparison.images import looks

    runs = [run for runs in zip_longest(*(one.runs for one in found.settings)) for run in runs if run]
    labels = {run.uri: setting.label for setting in found.settings for run in setting.runs}
    return looks(runs, images)._replace(labels=labels)
