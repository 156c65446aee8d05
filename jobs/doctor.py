"""Check this machine: what is missing or does not fit, and how to fix it.

  tips-ray doctor                            this machine: packages, accelerator, memory, S3, Ray
  tips-ray doctor RUN.yaml [KEY=VALUE ...]   and all that `tips-ray pretrain RUN.yaml` would check before it starts

Prints one line per check: ok, warn (works with a limitation), fail. The exit code is 1 if a check fails.
"""

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.errors import CheckResult


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray doctor`."""
    parser.add_argument("config", type=Path, nargs="?", metavar="RUN.yaml", help="config of a run to check as well")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")


def run(arguments: argparse.Namespace) -> int:
    """Print a line per check as it ends; return 1 if one fails."""
    from tips_ray.errors import check_results
    from tips_ray.launch.machine_checks import machine_checks, run_results

    failed = sum(_shown(check_results(name, check)) for name, check in machine_checks().items())
    if arguments.config:
        failed += _shown(run_results(arguments.config, arguments.overrides))
    return 1 if failed else 0


def _shown(found: "Iterable[CheckResult]") -> int:
    """Print the findings; return how many fail."""
    failed = 0
    for check, level, text in found:
        print(f"{level:4}  {check:17}  {text}", flush=True)
        failed += level == "fail"
    return failed
