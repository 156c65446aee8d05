"""Data sets as tasks get them. N images, H W pixels of a map, S side of the images."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from tips_ray.data.decode import squashed


class Instances(NamedTuple):
    """Images that ask for, or are, other images of the same thing, each in one of D domains."""

    domains: Sequence[str]
    """Names of the domains."""
    domain_N: Tensor
    """Place of each image's domain, int64."""
    labels: Sequence[tuple[int, ...]]
    """Classes of each image; equal numbers in two domains are two classes."""
    is_query_N: Tensor
    """Whether an image asks, bool."""
    is_index_N: Tensor
    """Whether an image can be found, bool; a query never finds itself."""

    @property
    def relevant_N(self) -> Tensor:
        """Images of the index, other than itself, that share a class of each image, summed over its classes."""
        of_index = zip(self.domain_N.tolist(), self.labels, self.is_index_N.tolist(), strict=True)
        counts = Counter((domain, label) for domain, labels, inside in of_index if inside for label in labels)
        keys = zip(self.domain_N.tolist(), self.labels, strict=True)
        found = [sum(counts[domain, label] for label in labels) for domain, labels in keys]
        own = [len(labels) * inside for labels, inside in zip(self.labels, self.is_index_N.tolist(), strict=True)]
        return torch.tensor(found) - torch.tensor(own)


@dataclass(frozen=True)
class Examples:
    """Images and their annotations; annotations that the data lack are empty."""

    images_NSS3: Tensor
    """uint8 RGB, squashed to a square."""
    labels: Sequence[Tensor] = ()
    """Integer classes [H, W] for each image."""
    depth_m: Sequence[Tensor] = ()
    """Metres, float32 [H, W] for each image, 0 where there is none."""
    normals: Sequence[Tensor] = ()
    """Unit vectors, float32 [3, H, W] for each image, 0 where there is none."""
    categories_N: Tensor | None = None
    """Class of each whole image, int64."""
    captions: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    """Kind of caption -> captions of each image, one or more."""
    instances: Instances | None = None
    """Queries and index of instance retrieval."""


@dataclass(frozen=True)
class Dataset:
    """Test images, and training images if they were asked for."""

    test: Examples
    train: Examples | None = None
    class_names: tuple[str, ...] = ()
    """Names of the classes in `labels`."""
    ignore_index: int | None = None
    category_names: tuple[str, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Number of images, or of pixels, that were left out, by reason."""


def squashed_image(image_HWC: np.ndarray, size_px: int) -> Tensor:
    """The image as uint8 [size_px, size_px, 3]; see `squashed`."""
    return torch.from_numpy(squashed(image_HWC, size_px))
