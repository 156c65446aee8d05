"""Sweep keys of a run: train settings from a space, compare them at rungs, and train the best to the end.

  tips-ray sweep SWEEP.yaml [KEY=VALUE ...]     e.g. settings=40 replicas=3 scheduler=none
  tips-ray sweep SWEEP.yaml --dry-run           checks everything, prints the first settings, and stops
  tips-ray sweep SWEEP.yaml --without-ray       trials one after the other in this process
  tips-ray sweep SWEEP.yaml --from PLACE        trains first the best settings of an earlier sweep, or of the finished
                                                runs of an experiment of MLflow
  tips-ray sweep SWEEP.yaml --check-transfer width=2x steps=4x     may a finished small sweep choose for a large run?

Trials run on Ray Tune, on the cluster at RAY_ADDRESS or on this machine. The same command again goes on where a sweep
was stopped or killed. With more settings, other ranges, another scheduler or more replicas it extends the sweep, and
scores of settings that lie in the new space count. docs/sweeps.md describes the file.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.config.sweep import SweepConfig
    from tuning.sweeps.earlier import Earlier


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray sweep`."""
    parser.add_argument("config", type=Path, metavar="SWEEP.yaml", help="config of the sweep")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")
    parser.add_argument("--dry-run", action="store_true", help="check, print the first settings, and stop")
    parser.add_argument("--from", dest="earlier", metavar="PLACE", help="folder of a sweep, or name of an experiment")
    parser.add_argument("--mlflow-uri", metavar="URI", help="of an experiment; default: MLFLOW_TRACKING_URI")
    parser.add_argument("--check-transfer", nargs="+", metavar="FACTOR", help="width=2x, steps=4x: see above")
    parser.add_argument("--without-ray", action="store_true", help="run trials one after the other in this process")


def run(arguments: argparse.Namespace) -> None:
    """Run the sweep and print its result.

    Raises:
        ValueError: the config is wrong, or another driver works on the sweep.
        RunFailedError: all settings fail.
    """
    from tips_ray.config.sweep import load_sweep

    config = load_sweep(arguments.config, arguments.overrides)
    earlier = _earlier(arguments)
    if arguments.dry_run and arguments.check_transfer:
        raise ValueError("--dry-run shows a sweep, not a check of its transfer: leave one of the two out")
    if arguments.dry_run:
        _dry_run(config, earlier)
        return
    from tuning.sweeps.executor import run_here, run_on_tune
    from tuning.sweeps.folder import sweep_uri
    from tuning.sweeps.run import run_sweep, told_results

    execute = run_here if arguments.without_ray else run_on_tune
    if arguments.check_transfer:
        if earlier:
            raise ValueError("--check-transfer takes its settings from the sweep itself: leave --from out")
        from tuning.sweeps.transfer import check_transfer, factors_of

        print("\n".join(check_transfer(config, factors_of(arguments.check_transfer), execute, _tell)))
        return
    run_sweep(config, execute, _tell, earlier)
    print("\n".join(told_results(sweep_uri(config))))


def _tell(line: str) -> None:
    print(line, flush=True)


def _earlier(arguments: argparse.Namespace) -> "Earlier | None":
    from tuning.sweeps.earlier import Earlier

    if arguments.earlier is None and arguments.mlflow_uri:
        raise ValueError(f"--mlflow-uri ({arguments.mlflow_uri}) belongs to --from, which is missing")
    if arguments.earlier == "":
        raise ValueError("--from is empty: give the folder of a sweep, or the name of an experiment")
    return Earlier(arguments.earlier, arguments.mlflow_uri) if arguments.earlier else None


def _dry_run(config: "SweepConfig", earlier: "Earlier | None") -> None:
    from itertools import islice

    from tips_ray import storage
    from tips_ray.launch.checks import preflight
    from tips_ray.launch.cluster import resources_suffice
    from tuning.sweeps.earlier import earlier_settings
    from tuning.sweeps.folder import CONFIG, sweep_uri
    from tuning.sweeps.forecast import forecast
    from tuning.sweeps.run import checked, require_unchanged
    from tuning.sweeps.rungs import Rungs
    from tuning.sweeps.search import proposals

    base = checked(config)
    if storage.exists(storage.join(uri := sweep_uri(config), CONFIG)):
        require_unchanged(config, uri)
        print(f"sweep      {config.name} is there; this is what a new one would do: {uri}")
    suggested, told = earlier_settings(config, earlier) if earlier else ((), "")
    if told:
        print(f"earlier    {told}")
    print(forecast(config, base))
    for number, (values, by) in enumerate(islice(proposals(config, Rungs(config, base), suggested), 10)):
        print(f"setting {number}: {', '.join(f'{key}={value}' for key, value in values.items())} ({by})")
    if config.scenes:  # the first start renders them
        print(resources_suffice(base))
    else:
        preflight(base).require()
