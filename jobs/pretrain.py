"""Pretrain TIPS: one run, from its data to checkpoints, metrics and a report.

  tips-ray pretrain RUN.yaml [KEY=VALUE ...]     e.g. schedule.total_steps=1000 resources.workers=4
  tips-ray pretrain RUN.yaml --dry-run           prints the resolved config and checks what can be known before
  tips-ray pretrain RUN.yaml --supervise         starts again when the driver or the cluster's head is lost
  tips-ray pretrain RUN.yaml --without-ray       one process; below torchrun (-m jobs.cli pretrain ...) one per rank
  tips-ray pretrain RUN.yaml --log-format json   progress, events and errors as JSON lines (docs/formats.md)

The same name again resumes the run from its newest checkpoint, with or without Ray. Without a cluster (RAY_ADDRESS),
Ray runs on this machine.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.config import RunConfig
    from tips_ray.launch.driver import Trainer


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray pretrain`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop before Ray starts")
    parser.add_argument("--supervise", action="store_true", help="start again when the driver or the head was lost")
    parser.add_argument("--without-ray", action="store_true", help="train in this process, or as a rank of torchrun")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--quiet", action="store_true", help="print errors alone")
    form.add_argument("--log-format", choices=("lines", "json"), default="lines", help="json: an object per line")


def run(arguments: argparse.Namespace) -> int | None:
    """Check, then train.

    Raises:
        ValueError: config, data, storage or resources are wrong.
        RunFailedError: training stopped.
    """
    from tips_ray import console
    from tips_ray.config import RunConfig, load_config

    console.speak("quiet" if arguments.quiet else arguments.log_format)
    config = load_config(RunConfig, arguments.config, arguments.overrides)
    is_on_ranks = int(os.environ.get("WORLD_SIZE", 1)) > 1
    if is_on_ranks and not arguments.without_ray:
        raise ValueError("torchrun starts ranks that need no Ray: add --without-ray, or leave torchrun out")
    if arguments.supervise and not arguments.dry_run:
        if is_on_ranks:
            raise ValueError("--supervise starts one driver; torchrun starts ranks itself: use its --max-restarts")
        return _supervise(arguments, config)
    from tips_ray.launch.stops import signals_end_quietly

    with signals_end_quietly():
        trainer = _trainer(arguments.without_ray)
        if arguments.dry_run:
            _dry_run(trainer.adapted(config), trainer)
        else:
            _train(config, trainer)


def _train(config: "RunConfig", trainer: "Trainer") -> None:
    from tips_ray.console import tell
    from tips_ray.launch import pretrain

    uri = pretrain(config, trainer)
    if int(os.environ.get("RANK", 0)) == 0:
        tell("run", f"run folder: {uri}\nnext: tips-ray report {uri}", uri=uri)


def start_command(arguments: Sequence[str]) -> list[str]:
    """The command of `tips-ray pretrain` with these arguments, for a separate process."""
    return [sys.executable, "-m", "jobs.cli", "pretrain", *arguments]


def _trainer(without_ray: bool) -> "Trainer":
    if without_ray:
        from tips_ray.launch.on_ranks import RankTrainer

        return RankTrainer()
    from tips_ray.launch.on_ray import RayTrainer

    return RayTrainer()


def _supervise(arguments: argparse.Namespace, config: "RunConfig") -> int:
    from tips_ray import storage
    from tips_ray.launch.supervisor import cluster_answers, supervise
    from tips_ray.runs import RunFolder

    given = {"--without-ray": arguments.without_ray, "--quiet": arguments.quiet}
    given["--log-format=json"] = arguments.log_format == "json"
    options = [option for option, is_given in given.items() if is_given]
    command = start_command([str(arguments.config), *arguments.overrides, *options])
    folder = RunFolder(storage.resolved(storage.join(config.storage, config.name)))
    return supervise(command, folder, answers=(lambda: True) if arguments.without_ray else cluster_answers)


def _dry_run(config: "RunConfig", trainer: "Trainer") -> None:
    import yaml

    from tips_ray.launch.checks import preflight
    from tips_ray.storage import without_credentials

    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    print(without_credentials(text), end="", flush=True)
    checked = preflight(config, trainer.checks(config))
    for check, level, text in checked.results:
        if level != "fail":
            print(f"# {check:10} {'warning: ' if level == 'warn' else ''}{text}", flush=True)
    checked.require()
