"""Run everything on this machine in a few minutes, from data to report.

Scenes in a real S3 server -> a small PaliGemma that describes them -> two FSDP workers -> MLflow -> report.

tips-ray demo [OUT] [KEY=VALUE ...]     default OUT: out/demo; keys of jobs/configs/demo.yaml
tips-ray demo --long                    half an hour for a better show; out/demo-long, jobs/configs/demo_long.yaml
"""

import argparse
from functools import partial
from pathlib import Path

JOBS = Path(__file__).parent
QUICK = ("demo.yaml", 2048, "out/demo")
LONG = ("demo_long.yaml", 8192, "out/demo-long")
"""Config, scenes to train on, default OUT."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray demo`."""
    parser.add_argument("words", nargs="*", metavar="[OUT] KEY=VALUE", help="folder for everything; keys of the config")
    parser.add_argument("--long", action="store_true", help="half an hour for a better show")


def run(arguments: argparse.Namespace) -> None:
    """Render, store, train, evaluate, report; print one line per stage.

    Raises:
        ValueError: a key is wrong, or the folder holds the demo with another config.
    """
    from tips_ray.demo.show import Show, run_demo

    config, scenes, default_out = LONG if arguments.long else QUICK
    folders = [word for word in arguments.words if "=" not in word] or [default_out]
    overrides = [word for word in arguments.words if "=" in word]
    show = Show(JOBS / "configs" / config, JOBS / "scene_captioner", JOBS / "suites" / "demo.yaml", scenes)
    shown = run_demo(show, Path(folders[0]).resolve(), overrides, partial(print, flush=True))
    print(f"report       {shown.report}")
    print(f"MLflow       mlflow ui --backend-store-uri {shown.mlflow_uri}")
    print("next         tips-ray pretrain --help")
