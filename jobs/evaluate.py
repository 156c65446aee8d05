"""Evaluate a frozen encoder: results.json, a table beside published scores, and pictures.

  tips-ray evaluate out/runs/photos --suite scenes
  tips-ray evaluate out/tips-b14 --suite quick data.camvid.folder=camvid data.flickr.folder=flickr
  tips-ray evaluate timm:vit_base_patch14_dinov2 --suite my-suite.yaml image_size_px=224

MODEL: a run or one of its checkpoints, a transformers or timm folder, released npz, timm:NAME. A suite is a YAML like
those in jobs/suites. The same command again runs only the tasks that have no result. Features of patches lie in a file
meanwhile (scratch, patch_dtype); a small model takes minutes on a CPU. With ray.actors=8 ray.gpus_per_actor=1, or with
RAY_ADDRESS, images are encoded by actors and data sets go side by side; folders must be there on every node.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tips_ray.config.evaluation import RayConfig, SuiteConfig
    from tips_ray.evaluation.encoders import Encoder
    from tips_ray.evaluation.results import RunTasks
    from tips_ray.evaluation.suite_tasks import EndedTask

SUITES = Path(__file__).parent / "suites"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray evaluate`."""
    named = ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml")))
    parser.add_argument("model", metavar="MODEL", help="run, checkpoint, folder, npz or timm:NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the suite, dotted")
    parser.add_argument("--suite", default="quick", help=f"{named}, or a YAML file; default: quick")
    parser.add_argument("--output", metavar="FOLDER", help="local or s3://; default: out/evaluation/NAME-SUITE")


def run(arguments: argparse.Namespace) -> None:
    """Run what has no result yet, print the table.

    Raises:
        ValueError: a wrong suite or model, data that cannot be scored, or a folder with results of other weights.
    """
    from tips_ray.config import load_config
    from tips_ray.config.evaluation import SuiteConfig

    path = _suite_path(arguments.suite)
    suite = load_config(SuiteConfig, path, arguments.overrides)
    from tips_ray.evaluation.load_encoder import load_encoder
    from tips_ray.evaluation.results import run_suite
    from tips_ray.runs.tracking import require_answer, track_scores

    encoder = load_encoder(arguments.model, suite.image_size_px)
    folder = arguments.output or f"out/evaluation/{Path(arguments.model).name.replace(':', '-')}-{path.stem}"
    if suite.mlflow_uri:
        require_answer(suite.mlflow_uri, "mlflow_uri")

    def tell(name: str, record: dict[str, Any]) -> None:
        print("\n".join(_lines(name, record)), flush=True)

    found = run_suite(encoder, arguments.model, suite, folder, tell, _task_runner(encoder, arguments.model, suite))
    if suite.mlflow_uri:
        scores = {f"{name}/{key}": value for name in found for key, value in found[name].get("scores", {}).items()}
        track_scores(suite.mlflow_uri, suite.experiment, arguments.model, folder, scores)
    print(f"results      {folder}/results.json, {folder}/table.md, {folder}/pictures")


def _task_runner(encoder: "Encoder", model: str, suite: "SuiteConfig") -> "RunTasks":
    """Here, or on Ray where the suite or RAY_ADDRESS says so."""
    from tips_ray.config.evaluation import RayConfig
    from tips_ray.evaluation.features import encoding_here
    from tips_ray.evaluation.suite_tasks import tasks_here
    from tips_ray.launch import cluster as ray_cluster

    config = suite.ray or (RayConfig() if ray_cluster.address() else None)
    if config:
        return partial(_tasks_on_ray, encoder, model, suite, config)
    return partial(tasks_here, encoder, suite, encoding_here(encoder, suite.batch_images))


def _tasks_on_ray(
    encoder: "Encoder", model: str, suite: "SuiteConfig", config: "RayConfig", names: "Sequence[str]"
) -> "Iterator[EndedTask]":
    if not names:
        return
    from ray.exceptions import RayError

    from tips_ray.errors import RunFailedError, described, root_cause
    from tips_ray.evaluation.encoder_place import EncoderPlace
    from tips_ray.evaluation.suite_pipeline import tasks_on_ray
    from tips_ray.launch import cluster as ray_cluster

    ray_cluster.require_room_for_actor(config, config.cpus_per_task)
    ray_cluster.connect(config.actors * config.cpus_per_actor + config.cpus_per_task)
    ray_cluster.quiet_data()
    try:
        yield from tasks_on_ray(encoder, EncoderPlace.of(model, encoder), suite, config, names)
    except RayError as error:
        if isinstance(cause := root_cause(error), (ValueError, OSError)):
            raise cause from None
        raise RunFailedError(
            f"evaluation stopped: {described(error)}; the same command runs the tasks that have no result"
        ) from None


def _suite_path(suite: str) -> Path:
    named = SUITES / f"{suite}.yaml"
    path = named if named.is_file() else Path(suite)
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml")))
        raise ValueError(f"--suite ({suite}) must be one of {known}, or a YAML file")
    return path


def _lines(name: str, record: dict[str, Any]) -> list[str]:
    if "skipped" in record:
        return [f"{name}: skipped, {record['skipped']}"]
    left_out = ", ".join(f"{count} {reason}" for reason, count in record["left_out"].items())
    head = f"{name} ({record['seconds']} s)" + (f"; left out: {left_out}" if left_out else "")
    errors = record.get("standard_errors", {})  # results of an earlier version have none
    return [head, *(f"  {score:52} {_number(value, errors.get(score))}" for score, value in record["scores"].items())]


def _number(value: float, error: float | None) -> str:
    """With its standard error over the test images, where it has one."""
    return f"{value:.4g}" if error is None else f"{value:.4g} ± {error:.2g}"
