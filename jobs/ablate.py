"""Run the paper's ablation on rendered scenes: rows that differ only in their objective, a table, and verdicts.

  tips-ray ablate --quick                  one seed; about half an hour on two CPU cores
  tips-ray ablate --full                   five seeds; reuses the runs of --quick
  tips-ray ablate --full replicas=3 'only=[clip_both, tips]'     some of the rows
  tips-ray ablate --full at_a_time=null base.resources.gpus_per_worker=1    as many rows at once as there are GPUs
  tips-ray ablate MY.yaml base.schedule.total_steps=1000 --output out/my    a file like those of jobs/ablations

An ablation is a sweep with listed settings, docs/sweeps.md: it can be stopped and killed, and the same command again
runs only what is missing. OUTPUT is the sweep's folder; it also holds table.md and results.json.
"""

import argparse
from functools import partial
from pathlib import Path

ABLATIONS = Path(__file__).parent / "ablations"
QUICK, FULL = "replicas=1", "replicas=5"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray ablate`."""
    parser.add_argument("words", nargs="*", metavar="[FILE] KEY=VALUE", help="default: jobs/ablations/paper.yaml")
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument("--quick", action="store_true", help="one seed, as the default file has it")
    sizes.add_argument("--full", action="store_true", help="five seeds")
    parser.add_argument("--output", metavar="FOLDER", default="out/ablation", help="default: out/ablation")
    parser.add_argument("--without-ray", action="store_true", help="run rows one after the other in this process")


def run(arguments: argparse.Namespace) -> None:
    """Run what is missing, then write and print the table.

    Raises:
        ValueError: a key is wrong, or the output holds runs with another config.
        RunFailedError: a run failed.
    """
    from tips_ray.config import load_config
    from tips_ray.config.ablation import AblationConfig

    files = [Path(word) for word in arguments.words if "=" not in word]
    if len(files) > 1:
        raise ValueError(f"FILE must be one, not {', '.join(map(str, files))}; overrides are KEY=VALUE")
    overrides = [word for word in arguments.words if "=" in word]
    path = files[0] if files else ABLATIONS / "paper.yaml"
    seeds = [QUICK] * arguments.quick + [FULL] * arguments.full
    config = load_config(AblationConfig, path, [*seeds, *overrides])
    out = Path(arguments.output).resolve()
    from tuning.ablations.ablation import run_ablation
    from tuning.sweeps.executor import run_here, run_on_tune

    print(run_ablation(config, out, run_here if arguments.without_ray else run_on_tune, partial(print, flush=True)))
    print(f"table        {out / 'table.md'}, {out / 'results.json'}")
