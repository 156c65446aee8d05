"""Images of a data set in a folder, local or s3://. One that cannot be used is counted and left out. S side."""

from collections import Counter
from typing import NamedTuple

from torch import Tensor

from tips_ray import storage
from tips_ray.data.decode import BadImage, open_image, reduction_for
from tips_ray.evaluation.datasets.examples import squashed_image

MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 50 * 2**20, 100_000_000


class FoundImage(NamedTuple):
    """An image as the encoder gets it."""

    pixels_SS3: Tensor
    size: tuple[int, int]
    """Height and width before it was squashed."""


def by_stem(folder: str) -> dict[str, str]:
    """URIs of the files in a folder by their names without what follows the last dot."""
    return {name.rsplit(".", 1)[0]: storage.join(folder, name) for name in storage.list_names(folder)}


def read_image(uri: str, size_px: int, left_out: Counter[str]) -> FoundImage | None:
    """None, and counted by its reason, where there is no image or a bad one."""
    try:
        opened = open_image(storage.read_bytes(uri), MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS)
        size = opened.height, opened.width
        pixels_HWC = opened.pixels(reduction_for(min(size) / size_px))
    except storage.NotFoundError:
        left_out["missing"] += 1
        return None
    except BadImage as error:
        left_out[error.reason] += 1
        return None
    return FoundImage(squashed_image(pixels_HWC, size_px), size)


def require_images(images: list[Tensor], folder: str, left_out: Counter[str]) -> None:
    """
    Raises:
        ValueError: there is none.
    """
    if not images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(f"{folder} has no image that can be used ({reasons or 'it has no images'})")
