"""The whole road on this machine in a few minutes.

Scenes in a real S3 server -> a small PaliGemma that describes them -> two FSDP workers -> MLflow -> report.

tips-ray demo [OUT] [KEY=VALUE ...]     default OUT: out/demo; keys of jobs/configs/demo.yaml
tips-ray demo --long                    half an hour for a better show; out/demo-long, jobs/configs/demo_long.yaml
"""

import argparse
import os
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

if TYPE_CHECKING:
    from tips_ray.config import RunConfig

CONFIGS = Path(__file__).parent / "configs"
CAPTIONER = Path(__file__).parent / "scene_captioner"
TRAIN_SEED, TEST_SEED = 0, 3  # 1 and 2 are those of train_captioner
TEST_SCENES, PROBE_SCENES = 256, 512


@dataclass(frozen=True)
class _Show:
    """How much is shown."""

    config: Path
    scenes: int
    out: str


QUICK = _Show(CONFIGS / "demo.yaml", 2048, "out/demo")
LONG = _Show(CONFIGS / "demo_long.yaml", 8192, "out/demo-long")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray demo`."""
    parser.add_argument("words", nargs="*", metavar="[OUT] KEY=VALUE", help="folder for everything; keys of the config")
    parser.add_argument("--long", action="store_true", help="half an hour for a better show")


def run(arguments: argparse.Namespace) -> None:
    """Render, store, train, evaluate, report; one line per stage.

    Raises:
        ValueError: a wrong key, or a folder that holds the demo with another config.
    """
    show = LONG if arguments.long else QUICK
    folders = [word for word in arguments.words if "=" not in word] or [show.out]
    overrides = [word for word in arguments.words if "=" in word]
    out = Path(folders[0]).resolve()
    from tips_ray.demo.s3_server import local_s3
    from tips_ray.scenes.shards import stored_scenes

    with local_s3(out / "s3") as server:
        os.environ.update(server.environment)
        _stage("S3 server", f"OpenStack Swift at {server.endpoint_url}")
        source = f"{server.make_bucket('scenes')}/train-{show.scenes}"
        rate = stored_scenes(source, TRAIN_SEED, show.scenes, {"caption": "web_caption"})
        is_new = f"rendered and stored, {rate:.0f}/s" if rate else "are there"
        _stage("scenes", f"{show.scenes:,} {is_new}: {source}")
        config = _config(show.config, out, source, overrides)
        from jobs.pretrain import pretrain

        started = time.perf_counter()
        folder = pretrain(config)
        _stage("trained", f"{config.schedule.total_steps} steps in {time.perf_counter() - started:.0f} s: {folder}")
        scores = _write_report(out, config, folder, {"render and store": rate})
    _stage("evaluated", scores)
    print(f"report       {out / 'report.html'}")
    print(f"MLflow       mlflow ui --backend-store-uri sqlite:///{out / 'runs' / 'mlflow.db'}")
    print("next         tips-ray pretrain --help")


def _stage(name: str, text: str) -> None:
    print(f"{name:12} {text}", flush=True)


def _config(path: Path, out: Path, source: str, overrides: list[str]) -> "RunConfig":
    from tips_ray.config import RunConfig, load_config

    fixed = [f"storage={out / 'runs'}", f"data.sources=[{{uri: {source}}}]", f"captions.captioner.model={CAPTIONER}"]
    return load_config(RunConfig, path, ["name=demo", *fixed, *overrides])


def _write_report(out: Path, config: "RunConfig", folder: str, rates: dict[str, float]) -> str:
    """Evaluate on unseen scenes, before and after training, and write the page; returns the scores in one line."""
    from tips_ray.demo.evaluation import evaluate
    from tips_ray.report import write_report
    from tips_ray.report.of_folder import report_of

    found = evaluate(config, folder, TEST_SEED, TEST_SCENES, TRAIN_SEED, PROBE_SCENES)
    base = report_of(folder)
    speeds = {**{name: rate for name, rate in rates.items() if rate}, **base.images_per_second}
    write_report(out / "report.html", replace(base, images_per_second=speeds, **found.parts))
    (out / "scores.yaml").write_text(yaml.safe_dump(found.scores))
    return found.line
