"""Tasks of a suite, run in this process; it reads and encodes each data set once."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from tips_ray import storage
from tips_ray.config.evaluation import SuiteConfig, ZeroShotSegmentationConfig
from tips_ray.config.evaluation_data import PublishedConfig, ScenesConfig
from tips_ray.evaluation.datasets import Dataset, load_dataset
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.features import Encoding, FrozenData, Reads, Scratch
from tips_ray.evaluation.tasks import TaskSkipped, task_result
from tips_ray.evaluation.zero_shot import windowed_size_px

Record = dict[str, Any]


class EndedTask(NamedTuple):
    """Result of a task of a suite, or why it was skipped."""

    name: str
    record: Record
    """Record of the task; see `run_suite`."""
    pictures: dict[str, np.ndarray]


class DataKey(NamedTuple):
    """Key shared by tasks that read the same images at the same size."""

    data: str
    """Name of a data set of the suite."""
    size_px: int


def by_data(suite: SuiteConfig, names: Iterable[str], encoder: Encoder) -> dict[DataKey, list[str]]:
    """Names of tasks, grouped by the images that they read."""
    groups: dict[DataKey, list[str]] = {}
    for name in names:
        task = suite.tasks[name]
        windows = task.windows if isinstance(task, ZeroShotSegmentationConfig) else 1
        groups.setdefault(DataKey(task.data, windowed_size_px(encoder, windows)), []).append(name)
    return groups


def not_given(suite: SuiteConfig, name: str) -> EndedTask | None:
    """The task as skipped if the config names no folder for its data, else None."""
    task = suite.tasks[name]
    data = suite.data[task.data]
    if isinstance(data, ScenesConfig) or data.folder is not None:
        return None
    reason = f"data.{task.data}.folder is not given"
    if isinstance(data, PublishedConfig) and suite.data_root is not None:
        reason += f", and {storage.join(suite.data_root, data.home)} lacks files: --check-data names them"
    return EndedTask(name, {"skipped": reason}, {})


def tasks_here(
    encoder: Encoder,
    suite: SuiteConfig,
    encoding: Encoding,
    names: Sequence[str],
    look: Callable[[str, Dataset], None] = lambda name, dataset: None,
) -> Iterator[EndedTask]:
    """Run the named tasks one after the other, grouped by the images that they read.

    Args:
        encoder: encoder to evaluate.
        suite: tasks and data sets.
        encoding: passes images through the encoder.
        names: names of tasks.
        look: called with the name and the images of each data set, after its tasks.

    Raises:
        ValueError: a task cannot be scored.
    """
    for key, group in by_data(suite, names, encoder).items():
        frozen = cache(partial(_frozen, encoder, suite, encoding, key, group))
        for name in group:
            yield _ended(suite, name, frozen)
        look(key.data, frozen().dataset)


def _ended(suite: SuiteConfig, name: str, read: Callable[[], FrozenData]) -> EndedTask:
    started = time.perf_counter()
    try:
        data = read()
        outcome = task_result(suite.tasks[name], data, suite.seed)
    except TaskSkipped as reason:
        return EndedTask(name, {"skipped": str(reason)}, {})
    seconds = round(time.perf_counter() - started, 1)
    found = {"scores": outcome.scores, "standard_errors": outcome.standard_errors}
    record = {**found, "seconds": seconds, "left_out": dict(data.dataset.left_out)}
    return EndedTask(name, record, outcome.pictures)


def _frozen(encoder: Encoder, suite: SuiteConfig, encoding: Encoding, key: DataKey, names: Sequence[str]) -> FrozenData:
    """Data of the named tasks; training images, patches and layers only if a task needs them."""
    tasks = [suite.tasks[name] for name in names]
    scratch = Scratch(suite.scratch, torch.float16 if suite.patch_dtype == "fp16" else torch.float32)
    dataset = load_dataset(suite.data[key.data], key.size_px, any(task.learns for task in tasks))
    reads = Reads(any(task.reads_patches for task in tasks), any(task.reads_layers for task in tasks))
    return FrozenData(encoder, dataset, encoding, scratch, reads)
