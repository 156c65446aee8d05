"""The largest micro-batch that fits a GPU, by traces."""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from tips_ray.config import RunConfig, override
from tips_ray.planning.step_trace import StepTrace, traced_in_run
from tips_ray.train.micro_batch import largest_that_fits, largest_with_graph

TRIES = 3


class Largest(NamedTuple):
    """The most images per pass that fit."""

    images: int
    """0: not even one fits."""
    with_graph: int | None = None
    """The same while the first passes keep their graph, if `resources.keep_embedding_graph` is `auto`; 0: less than
    half of `images` fit, or there is a single pass."""


def settled(config: RunConfig, largest: Largest) -> RunConfig:
    """The config with which `micro_batch_images: auto` would train."""
    values = {"micro_batch_images": largest.with_graph or largest.images or 1}
    if config.resources.keep_embedding_graph == "auto":
        values["resources.keep_embedding_graph"] = bool(largest.with_graph)
    return override(RunConfig, config.model_dump(mode="json"), values)


def largest_micro_batch(
    config: RunConfig, limit_bytes: float, trace: Callable[[RunConfig], StepTrace] = traced_in_run
) -> Largest:
    """What `micro_batch_images: auto` finds, without and, if `resources.keep_embedding_graph` is `auto`, with graph."""
    found = _largest(config, limit_bytes, trace)
    if not found or config.resources.keep_embedding_graph != "auto":
        return Largest(found)

    def fits(kept: RunConfig, images: int) -> bool:
        return trace(_with_images(kept, images)).peak_bytes <= limit_bytes

    return Largest(found, largest_with_graph(config, found, fits))


def _with_images(config: RunConfig, images: int) -> RunConfig:
    return override(RunConfig, config.model_dump(mode="json"), {"micro_batch_images": images})


def _largest(config: RunConfig, limit_bytes: float, trace: Callable[[RunConfig], StepTrace]) -> int:
    """The most images per pass that fit; 0: not even one.

    Memory grows evenly with the images, so two traces tell where the limit is, and a third one checks it.
    """
    share = config.global_batch_images // config.resources.workers
    known: dict[int, StepTrace] = {}

    def peak(images: int) -> int:
        if images not in known:
            known[images] = trace(_with_images(config, images))
        return known[images].peak_bytes

    few = 1
    some = next((images for images in (4, 3, 2, *range(5, share + 1)) if share % images == 0), 1)
    slope = (peak(some) - peak(few)) / max(some - few, 1)
    for _ in range(TRIES):
        try:
            images = largest_that_fits(config, partial(_fits, peak(few), slope, limit_bytes))
        except ValueError:
            return 0
        if peak(images) <= limit_bytes:
            return images
        slope = max((peak(images) - peak(few)) / max(images - few, 1), 1.05 * slope)
    return 0


def _fits(first_bytes: int, slope: float, limit_bytes: float, images: int) -> bool:
    return first_bytes + slope * (images - 1) <= limit_bytes
