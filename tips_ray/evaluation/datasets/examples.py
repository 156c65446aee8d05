"""What a data set gives to the tasks. N images, H W pixels of a map, S side of the images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from tips_ray.data.decode import squashed


@dataclass(frozen=True)
class Examples:
    """Images and what is known of them; empty where that is nothing."""

    images_NSS3: Tensor
    """uint8 RGB, squashed to a square."""
    labels: Sequence[Tensor] = ()
    """Whole numbers [H, W] for each image."""
    depth_m: Sequence[Tensor] = ()
    """float32 [H, W] for each image, 0 where there is none."""
    normals: Sequence[Tensor] = ()
    """float32 [3, H, W] for each image, of length 1, or 0 where there is none."""
    categories_N: Tensor | None = None
    """int64, the class of the whole image."""
    captions: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """For each kind of caption the captions of each image, one or more."""


@dataclass(frozen=True)
class Dataset:
    """Images to learn from, where somebody wants them, and others to be judged by."""

    test: Examples
    train: Examples | None = None
    class_names: tuple[str, ...] = ()
    """Of labels."""
    ignore_index: int | None = None
    category_names: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many images, or pixels of some, were left out, by reason."""


def squashed_image(image_HWC: np.ndarray, size_px: int) -> Tensor:
    """uint8 [size_px, size_px, 3], see `squashed`."""
    return torch.from_numpy(squashed(image_HWC, size_px))
