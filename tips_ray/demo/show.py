"""The demo from end to end on this machine: an S3 server, scenes, captions, training, evaluation, the report.

Evaluation and training are imported when they start, so that the first lines appear at once.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import yaml

from tips_ray.config import RunConfig, load_config
from tips_ray.config.evaluation import SuiteConfig
from tips_ray.demo.s3_server import LocalS3, local_s3
from tips_ray.launch.surroundings import spare_loopback
from tips_ray.report import write_report
from tips_ray.report.of_folder import report_of
from tips_ray.scenes.shards import stored_scenes

TRAIN_SEED = 0
"""Seed of the training scenes; captioner_training uses 1 and 2, the evaluation 3."""
Tell = Callable[[str], None]
"""Function that shows the user one line."""


class Show(NamedTuple):
    """Inputs of the demo."""

    config: Path
    """Config of the run, a YAML file."""
    captioner: Path
    """Folder of the PaliGemma that describes scenes."""
    suite: Path
    """Tasks of the evaluation, a YAML file."""
    scenes: int
    """Number of scenes to train on."""


class Shown(NamedTuple):
    """Locations of the results."""

    report: Path
    mlflow_uri: str


def run_demo(show: Show, out: Path, overrides: Sequence[str], tell: Tell) -> Shown:
    """Render, store, train, evaluate, report.

    Args:
        show: inputs of the demo.
        out: folder for everything.
        overrides: dotted keys of the config.
        tell: gets one line per stage.

    Raises:
        ValueError: a key is wrong, or `out` holds the demo with another config.
    """
    spare_loopback()
    with local_s3(out / "s3") as server:
        os.environ.update(server.environment)
        tell(_stage("S3 server", f"OpenStack Swift at {server.endpoint_url}"))
        source, scenes_per_second = _stored_scenes(server, show.scenes, tell)
        config = _config(show, out, source, overrides)
        folder = _trained(config, tell)
        scores = _write_report(out, config, folder, show.suite, scenes_per_second)
    tell(_stage("evaluated", scores))
    return Shown(out / "report.html", f"sqlite:///{out / 'runs' / 'mlflow.db'}")


def _stage(name: str, text: str) -> str:
    return f"{name:12} {text}"


def _stored_scenes(server: LocalS3, scenes: int, tell: Tell) -> tuple[str, float]:
    """URI of the scenes, and the number rendered per second; 0 if they were there already."""
    source = f"{server.make_bucket('scenes')}/train-{scenes}"
    rate = stored_scenes(source, TRAIN_SEED, scenes, {"caption": "web_caption"})
    is_new = f"rendered and stored, {rate:.0f}/s" if rate else "are there"
    tell(_stage("scenes", f"{scenes:,} {is_new}: {source}"))
    return source, rate


def _config(show: Show, out: Path, source: str, overrides: Sequence[str]) -> RunConfig:
    places = [f"storage={out / 'runs'}", f"data.sources=[{{uri: {source}}}]"]
    fixed = ["name=demo", *places, f"captions.captioner.model={show.captioner}"]
    return load_config(RunConfig, show.config, [*fixed, *overrides])


def _trained(config: RunConfig, tell: Tell) -> str:
    """Train; return the folder of the run."""
    from tips_ray.launch import pretrain

    started = time.perf_counter()
    folder = pretrain(config)
    tell(_stage("trained", f"{config.schedule.total_steps} steps in {time.perf_counter() - started:.0f} s: {folder}"))
    return folder


def _write_report(out: Path, config: RunConfig, folder: str, suite: Path, scenes_per_second: float) -> str:
    """Evaluate on unseen scenes, before and after training, and write the page; return the scores in one line."""
    from tips_ray.demo.evaluation import evaluate

    found = evaluate(config, folder, load_config(SuiteConfig, suite), TRAIN_SEED)
    base = report_of(folder)
    speeds = {"render and store": scenes_per_second} if scenes_per_second else {}
    speeds |= base.images_per_second
    write_report(out / "report.html", replace(base, images_per_second=speeds, **found.parts))
    (out / "scores.yaml").write_text(yaml.safe_dump(found.scores))
    return found.line
