"""Evaluate a frozen encoder; write results.json, a table beside published scores, and pictures.

  tips-ray evaluate out/runs/photos --suite scenes
  tips-ray evaluate out/tips-b14 --suite quick data.camvid.folder=camvid data.flickr.folder=flickr
  tips-ray evaluate timm:vit_base_patch14_dinov2 --suite my-suite.yaml image_size_px=224
  tips-ray evaluate out/tips-b14 --suite paper data_root=datasets --check-data

MODEL: a run or one of its checkpoints, a transformers or timm folder, released npz, timm:NAME. A suite is a YAML like
those in jobs/suites. The same command again runs only the tasks without a result. Patch features are kept in a
temporary file (scratch, patch_dtype). A small model takes minutes on a CPU. With ray.actors=8 ray.gpus_per_actor=1, or
with RAY_ADDRESS, actors encode images and data sets run side by side; folders must be there on every node.
"""

import argparse
from pathlib import Path
from typing import Any

SUITES = Path(__file__).parent / "suites"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray evaluate`."""
    named = ", ".join(sorted(path.stem for path in SUITES.glob("*.yaml")))
    parser.add_argument("model", metavar="MODEL", help="run, checkpoint, folder, npz or timm:NAME")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the suite, dotted")
    parser.add_argument("--suite", default="quick", help=f"{named}, or a YAML file; default: quick")
    parser.add_argument("--check-data", action="store_true", help="say which data are missing, and run nothing")
    parser.add_argument("--output", metavar="FOLDER", help="local or s3://; default: out/evaluation/NAME-SUITE")


def run(arguments: argparse.Namespace) -> int:
    """Run the tasks without a result, and print each task's scores. Returns 1 if --check-data finds something missing.

    Raises:
        ValueError: suite or model are wrong, data cannot be scored, or the folder holds results of other weights.
    """
    from tips_ray.config import load_config
    from tips_ray.config.evaluation import SuiteConfig

    path = _suite_path(arguments.suite)
    suite = load_config(SuiteConfig, path, arguments.overrides)
    if arguments.check_data:
        return _check_data(suite)
    from tips_ray.launch.evaluation import evaluate_model

    folder = arguments.output or f"out/evaluation/{Path(arguments.model).name.replace(':', '-')}-{path.stem}"

    def tell(name: str, record: dict[str, Any]) -> None:
        print("\n".join(_lines(name, record)), flush=True)

    print(f"tasks        {', '.join(suite.tasks)}; scores are shown as each ends", flush=True)
    evaluate_model(arguments.model, suite, folder, tell)
    print(f"results      {folder}/results.json, {folder}/table.md, {folder}/pictures")
    return 0


def _check_data(suite: Any) -> int:
    """Print what is missing of each data set, without loading the model; 1 if anything is."""
    from tips_ray.evaluation.datasets.needed import data_states

    states = data_states(suite)
    for state in states:
        place = state.folder or f"no folder: set data_root or data.{state.name}.folder"
        print(f"{state.name:16} {'missing' if state.missing else 'there'}  {place}")
        for paths in state.missing:
            print(f"  {' or '.join(path or 'folders of objects' for path in paths)}")
        if state.missing and state.offered:
            print(f"  from {state.offered}")
    print("Lists and folders were looked for, not each image: images that are missing are counted beside the scores.")
    return int(any(state.missing for state in states))


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
    from tips_ray.evaluation.results import number

    left_out = ", ".join(f"{count} {reason}" for reason, count in record["left_out"].items())
    head = f"{name} ({record['seconds']} s)" + (f"; left out: {left_out}" if left_out else "")
    errors = record.get("standard_errors", {})  # results of an earlier version have none
    return [head, *(f"  {score:52} {number(value, errors.get(score))}" for score, value in record["scores"].items())]
