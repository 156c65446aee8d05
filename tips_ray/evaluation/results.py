"""Results of a suite in a folder, local or s3://: `results.json`, a table and pictures. What has a result is done."""

import hashlib
import io
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from tips_ray import storage
from tips_ray.config.evaluation import ScenesConfig, SuiteConfig, TaskConfig, ZeroShotSegmentationConfig
from tips_ray.evaluation.datasets import fingerprint_of_data, load_dataset
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.features import FrozenData, Scratch
from tips_ray.evaluation.outcomes import TaskSkipped, outcome_of
from tips_ray.evaluation.score_table import score_table
from tips_ray.evaluation.zero_shot import windowed_size_px

RESULTS, TABLE = "results.json", "table.md"
Record = dict[str, Any]


def run_suite(
    encoder: Encoder, model: str, suite: SuiteConfig, folder: str, tell: Callable[[str, Record], None]
) -> dict[str, Record]:
    """All tasks of the suite that are not done, one after the other; each is written down when it ends.

    Done is a task of the same config on the same data and image size. A skipped task is tried again.

    Args:
        encoder: what is evaluated.
        model: its name.
        suite: tasks and data sets.
        folder: where results are and go.
        tell: called with each task's name and record.

    Returns:
        By task: `scores` and their `standard_errors` over the test images, or `skipped` (the reason); `seconds`,
        `left_out` (images of the data set, by reason).

    Raises:
        ValueError: the folder holds results of other weights, or a task cannot be scored.
    """
    results = _Results(folder, model, fingerprint(encoder))
    frozen: dict[tuple[str, int], FrozenData] = {}
    for name in suite.tasks:
        key = _key(suite, name, encoder)
        if results.done(name, key) is None:
            results.add(name, key, *_record(encoder, suite, name, frozen))
        tell(name, results.tasks[name])
    found = {name: results.tasks[name] for name in suite.tasks}
    storage.write_text(storage.join(folder, TABLE), score_table(model, suite, found))
    return found


def fingerprint(encoder: Encoder) -> str:
    """sha256 over names and values of all weights."""
    digest = hashlib.sha256()
    for network in encoder.networks:
        for name, value in _weights(network):
            digest.update(name.encode())
            digest.update(value.tobytes())
    return digest.hexdigest()


class _Results:
    """`results.json`, read once and written after each task."""

    def __init__(self, folder: str, model: str, weights: str) -> None:
        self.folder, self.model, self.weights = folder, model, weights
        uri = storage.join(folder, RESULTS)
        content = json.loads(storage.read_text(uri)) if storage.exists(uri) else {"weights": weights, "tasks": {}}
        if content["weights"] != weights:
            raise ValueError(
                f"{folder} holds results of other weights ({content['model']}, sha256 {content['weights'][:12]}); "
                "choose another --output"
            )
        self.tasks: dict[str, Record] = content["tasks"]

    def done(self, name: str, key: Record) -> Record | None:
        """The record of a task that was run with the same config."""
        record = self.tasks.get(name)
        return record if record and record["config"] == key and "scores" in record else None

    def add(self, name: str, key: Record, record: Record, pictures: dict[str, np.ndarray]) -> None:
        for title, pixels_HWC in pictures.items():
            storage.write_bytes(storage.join(self.folder, "pictures", f"{name}-{title}.png"), _png(pixels_HWC))
        self.tasks[name] = {**record, "config": key}
        content = {"model": self.model, "weights": self.weights, "tasks": self.tasks}
        storage.write_text(storage.join(self.folder, RESULTS), json.dumps(content, indent=1) + "\n")


def _record(
    encoder: Encoder, suite: SuiteConfig, name: str, frozen: dict[tuple[str, int], FrozenData]
) -> tuple[Record, dict[str, np.ndarray]]:
    task, started = suite.tasks[name], time.perf_counter()
    try:
        data = _frozen(encoder, suite, task, frozen)
        outcome = outcome_of(task, data, suite.seed)
    except TaskSkipped as reason:
        return {"skipped": str(reason)}, {}
    seconds = round(time.perf_counter() - started, 1)
    found = {"scores": outcome.scores, "standard_errors": outcome.standard_errors}
    return {**found, "seconds": seconds, "left_out": dict(data.dataset.left_out)}, outcome.pictures


def _frozen(
    encoder: Encoder, suite: SuiteConfig, task: TaskConfig, frozen: dict[tuple[str, int], FrozenData]
) -> FrozenData:
    """The data of a task at the size that it takes, read once."""
    config = suite.data[task.data]
    if not isinstance(config, ScenesConfig) and config.folder is None:
        raise TaskSkipped(f"data.{task.data}.folder is not given")
    windows = task.windows if isinstance(task, ZeroShotSegmentationConfig) else 1
    key = task.data, windowed_size_px(encoder, windows)
    if key not in frozen:
        scratch = Scratch(suite.scratch, torch.float16 if suite.patch_dtype == "fp16" else torch.float32)
        frozen[key] = FrozenData(encoder, load_dataset(config, key[1]), suite.batch_images, scratch)
    return frozen[key]


def _key(suite: SuiteConfig, name: str, encoder: Encoder) -> Record:
    """All that a result depends on beside the weights."""
    task = suite.tasks[name]
    return {
        "task": task.model_dump(mode="json", exclude={"published"}),
        "data": suite.data[task.data].model_dump(mode="json"),
        "files": fingerprint_of_data(suite.data[task.data]),
        "image_size_px": encoder.image_size_px,
        "patch_dtype": suite.patch_dtype,
        "seed": suite.seed,
    }


def _weights(network: nn.Module):
    return ((name, value.detach().float().cpu().numpy()) for name, value in sorted(network.state_dict().items()))


def _png(pixels_HWC: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels_HWC).save(buffer, "PNG")
    return buffer.getvalue()
