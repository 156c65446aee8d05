"""Tasks of a suite, run by this process, which reads and encodes each data set once."""

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from typing import Any, NamedTuple

import numpy as np
import torch

from tips_ray.config.evaluation import ScenesConfig, SuiteConfig, ZeroShotSegmentationConfig
from tips_ray.evaluation.datasets import load_dataset
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.features import Encoding, FrozenData, Scratch
from tips_ray.evaluation.outcomes import TaskSkipped, outcome_of
from tips_ray.evaluation.zero_shot import windowed_size_px

Record = dict[str, Any]


class EndedTask(NamedTuple):
    """What a task of a suite found, or why it was skipped."""

    name: str
    record: Record
    """See `run_suite`."""
    pictures: dict[str, np.ndarray]


class DataKey(NamedTuple):
    """What tasks share that read the same images at the same size."""

    data: str
    """Of the suite."""
    size_px: int


def data_key(suite: SuiteConfig, name: str, encoder: Encoder) -> DataKey:
    """Of the task of that name."""
    task = suite.tasks[name]
    windows = task.windows if isinstance(task, ZeroShotSegmentationConfig) else 1
    return DataKey(task.data, windowed_size_px(encoder, windows))


def tasks_here(encoder: Encoder, suite: SuiteConfig, encoding: Encoding, names: Sequence[str]) -> Iterator[EndedTask]:
    """Run these tasks, one after the other.

    Args:
        encoder: what is evaluated.
        suite: tasks and data sets.
        encoding: how images go through the encoder.
        names: of its tasks.

    Raises:
        ValueError: a task cannot be scored.
    """
    frozen = cache(partial(_frozen, encoder, suite, encoding))
    for name in names:
        yield _ended(suite, name, partial(frozen, data_key(suite, name, encoder)))


def _ended(suite: SuiteConfig, name: str, read: Callable[[], FrozenData]) -> EndedTask:
    started = time.perf_counter()
    try:
        data = read()
        outcome = outcome_of(suite.tasks[name], data, suite.seed)
    except TaskSkipped as reason:
        return EndedTask(name, {"skipped": str(reason)}, {})
    seconds = round(time.perf_counter() - started, 1)
    found = {"scores": outcome.scores, "standard_errors": outcome.standard_errors}
    record = {**found, "seconds": seconds, "left_out": dict(data.dataset.left_out)}
    return EndedTask(name, record, outcome.pictures)


def _frozen(encoder: Encoder, suite: SuiteConfig, encoding: Encoding, key: DataKey) -> FrozenData:
    config = suite.data[key.data]
    if not isinstance(config, ScenesConfig) and config.folder is None:
        raise TaskSkipped(f"data.{key.data}.folder is not given")
    scratch = Scratch(suite.scratch, torch.float16 if suite.patch_dtype == "fp16" else torch.float32)
    return FrozenData(encoder, load_dataset(config, key.size_px), encoding, scratch)
