"""A data set as a frozen encoder sees it, encoded when a task first asks. N images, S side, L patches, D width."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from itertools import chain
from math import prod
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from tips_ray.evaluation.datasets import Dataset, Examples
from tips_ray.evaluation.encoders import Encoder, Features, in_unit_range

Found = TypeVar("Found")


class Scratch(NamedTuple):
    """Where features of patches lie, and as what."""

    folder: str | None = None
    """On this machine; None: the system's temporary one."""
    dtype: torch.dtype = torch.float32


def features_of(
    encoder: Encoder, images_NSS3: Tensor, batch_images: int = 64, scratch: Scratch | None = None
) -> Features:
    """Of uint8 RGB images, on the host; embeddings in fp32, patches in a file of `scratch`."""
    embeddings: dict[str, list[Tensor]] = {name: [] for name in encoder.embeddings}

    def patches() -> Iterator[Tensor]:
        for found in _by_batch(encoder.features, images_NSS3, batch_images):
            for name, part_BE in found.embeddings.items():
                embeddings[name].append(part_BE.float().cpu())
            yield found.patches_BLD

    patches_NLD = stored(patches(), len(images_NSS3), scratch or Scratch())
    return Features(patches_NLD, {name: torch.cat(parts) for name, parts in embeddings.items()})


def layers_of(encoder: Encoder, images_NSS3: Tensor, batch_images: int, scratch: Scratch) -> list[Tensor]:
    """Four tensors [N, L, D], on the host, in a file."""
    parts = (torch.stack(layers, dim=1) for layers in _by_batch(encoder.layers, images_NSS3, batch_images))
    return list(stored(parts, len(images_NSS3), scratch).unbind(1))


def stored(parts: Iterator[Tensor], rows: int, scratch: Scratch) -> Tensor:
    """Parts [b, ...] one after the other, [rows, ...], mapped from a file without a name that goes with the tensor.

    Memory holds what is being used; the file's pages are the system's to keep or drop.

    Raises:
        ValueError: the disk has no room for them.
    """
    first = next(parts)
    shape = (rows, *first.shape[1:])
    with tempfile.NamedTemporaryFile(dir=scratch.folder, prefix="tips-ray-features-", delete=False) as file:
        path = file.name
    try:
        _require_room(path, prod(shape) * scratch.dtype.itemsize)
        found = torch.from_file(path, shared=True, size=prod(shape), dtype=scratch.dtype).view(shape)
    finally:
        os.unlink(path)
    place = 0
    for part in chain([first], parts):
        found[place : place + len(part)] = part
        place += len(part)
    assert place == rows
    return found


class FrozenData:
    """Patches take N * L * D * 4 bytes of disk, half of it in fp16; layers four times that."""

    def __init__(self, encoder: Encoder, dataset: Dataset, batch_images: int, scratch: Scratch | None = None) -> None:
        self.encoder, self.dataset, self.batch_images = encoder, dataset, batch_images
        self.scratch = scratch or Scratch()

    @cached_property
    def train(self) -> Features:
        assert self.dataset.train is not None
        return self._features(self.dataset.train)

    @cached_property
    def test(self) -> Features:
        return self._features(self.dataset.test)

    @cached_property
    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of training and test images."""
        assert self.dataset.train is not None
        return self._layers(self.dataset.train), self._layers(self.dataset.test)

    def _layers(self, examples: Examples) -> list[Tensor]:
        return layers_of(self.encoder, examples.images_NSS3, self.batch_images, self.scratch)

    def _features(self, examples: Examples) -> Features:
        return features_of(self.encoder, examples.images_NSS3, self.batch_images, self.scratch)


def _by_batch(encode: Callable[[Tensor], Found], images_NSS3: Tensor, batch_images: int) -> Iterator[Found]:
    for images_bSS3 in images_NSS3.split(batch_images):
        yield encode(in_unit_range(images_bSS3))


def _require_room(path: str, needed: int) -> None:
    folder = os.path.dirname(path)
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise ValueError(
            f"features of patches need {needed / 1e9:.1f} GB, {folder} has {free / 1e9:.1f} GB free: set scratch to a "
            "larger disk, patch_dtype=fp16, or a smaller image_size_px"
        )
