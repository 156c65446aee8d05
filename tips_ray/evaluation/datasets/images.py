"""Images of a data set in a folder, local or s3://. Unusable images are counted and left out. S side."""

from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from tips_ray import storage
from tips_ray.data.decode import BadImage, open_image, reduction_for
from tips_ray.evaluation.datasets.examples import Examples, squashed_image

MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 50 * 2**20, 100_000_000


class FoundImage(NamedTuple):
    """An image squashed for the encoder."""

    pixels_SS3: Tensor
    size: tuple[int, int]
    """Height and width before squashing."""


def read_parts(
    folder: str, read: Callable[[str, Counter[str]], Examples], with_train: bool
) -> tuple[Examples | None, Examples, dict[str, int]]:
    """`train` (if `with_train`) and `val` of a folder, and the number of images left out of each, by reason."""
    counts = {part: Counter[str]() for part in ("train", "val")}
    train = read(storage.join(folder, "train"), counts["train"]) if with_train else None
    test = read(storage.join(folder, "val"), counts["val"])
    return train, test, {f"{reason} ({part})": n for part, count in counts.items() for reason, n in count.items()}


def by_stem(folder: str) -> dict[str, str]:
    """URIs of the files in a folder by their names without suffix."""
    return {name.rsplit(".", 1)[0]: storage.join(folder, name) for name in storage.list_names(folder)}


def read_image(uri: str, size_px: int, left_out: Counter[str]) -> FoundImage | None:
    """The image; None, and counted in `left_out`, if it is missing or bad."""
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


def stacked(images: list[Tensor], folder: str, left_out: Counter[str]) -> Tensor:
    """Images stacked to [N, S, S, 3]; empties the list on the way, so that memory holds each image once.

    Raises:
        ValueError: there are no images.
    """
    if not images:
        reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
        raise ValueError(f"{folder} has no image that can be used ({reasons or 'it has no images'})")
    images.reverse()
    stacked_NSS3 = torch.empty(len(images), *images[0].shape, dtype=images[0].dtype)
    for place_SS3 in stacked_NSS3:
        place_SS3.copy_(images.pop())
    return stacked_NSS3
