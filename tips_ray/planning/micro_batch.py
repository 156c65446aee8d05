"""The largest micro-batch that fits a GPU, by traces."""

from collections.abc import Callable
from functools import partial

from tips_ray.config import RunConfig, override
from tips_ray.planning.step_trace import StepTrace, traced_in_run
from tips_ray.train.micro_batch import largest_that_fits

TRIES = 3


def with_images(config: RunConfig, images: int) -> RunConfig:
    """The config with `images` per pass."""
    return override(RunConfig, config.model_dump(mode="json"), {"micro_batch_images": images})


def largest_micro_batch(
    config: RunConfig, limit_bytes: float, trace: Callable[[RunConfig], StepTrace] = traced_in_run
) -> int:
    """The most images per pass that fit, of those that `micro_batch_images: auto` tries; 0: not even one fits.

    Memory grows evenly with the images, so two traces tell where the limit is, and a third one checks it.
    """
    share = config.global_batch_images // config.resources.workers
    known: dict[int, StepTrace] = {}

    def peak(images: int) -> int:
        if images not in known:
            known[images] = trace(with_images(config, images))
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
