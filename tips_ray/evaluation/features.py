"""Features of a data set by a frozen encoder, computed when a task first asks. N images, S side, L patches, D width.

b images are encoded at a time.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cached_property
from itertools import chain
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from tips_ray.evaluation.datasets import Dataset, Examples
from tips_ray.evaluation.encoders import Encoder, Features, in_unit_range

PATCHES, LAYERS = "patches", "layers"


class Scratch(NamedTuple):
    """Where patch features are stored, and their dtype."""

    folder: str | None = None
    """Folder on this machine; None: the system's temporary folder."""
    dtype: torch.dtype = torch.float32


EncodeBatch = Callable[[Encoder, Tensor], dict[str, Tensor]]
"""An encoder and uint8 RGB images [b, S, S, 3] -> outputs [b, ...] by name."""
Encoding = Callable[[EncodeBatch, Tensor], Iterator[dict[str, Tensor]]]
"""An `EncodeBatch` and all images of a data set -> its outputs, batch by batch, in the order of the images."""


def encoding_here(encoder: Encoder, batch_images: int = 64) -> Encoding:
    """Encode with the encoder of this process."""

    def encoding(encode: EncodeBatch, images_NSS3: Tensor) -> Iterator[dict[str, Tensor]]:
        for images_bSS3 in images_NSS3.split(batch_images):
            yield encode(encoder, images_bSS3)

    return encoding


def features_of(encoding: Encoding, images_NSS3: Tensor, scratch: Scratch | None = None) -> Features:
    """Features of uint8 RGB images, on the host; embeddings in fp32, patches in a file of `scratch`."""
    embeddings: list[dict[str, Tensor]] = []

    def patches() -> Iterator[Tensor]:
        for found in encoding(_features, images_NSS3):
            yield found.pop(PATCHES)
            embeddings.append(_on_host(found))

    patches_NLD = stored(patches(), len(images_NSS3), scratch or Scratch())
    return Features(patches_NLD, _joined(embeddings))


def embeddings_of(encoding: Encoding, images_NSS3: Tensor) -> dict[str, Tensor]:
    """Only the embeddings of `features_of`."""
    return _joined([_on_host(found) for found in encoding(_embeddings, images_NSS3)])


def _on_host(embeddings: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: part_bE.float().cpu() for name, part_bE in embeddings.items()}


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def layers_of(encoding: Encoding, images_NSS3: Tensor, scratch: Scratch | None = None) -> list[Tensor]:
    """Layer features, four tensors [N, L, D], on the host, in a file of `scratch`."""
    parts = (found[LAYERS] for found in encoding(_layers, images_NSS3))
    return list(stored(parts, len(images_NSS3), scratch or Scratch()).unbind(1))


def _features(encoder: Encoder, images_bSS3: Tensor) -> dict[str, Tensor]:
    found = encoder.features(in_unit_range(images_bSS3))
    return {PATCHES: found.patches_BLD, **found.embeddings}


def _embeddings(encoder: Encoder, images_bSS3: Tensor) -> dict[str, Tensor]:
    return encoder.features(in_unit_range(images_bSS3)).embeddings


def _layers(encoder: Encoder, images_bSS3: Tensor) -> dict[str, Tensor]:
    return {LAYERS: torch.stack(encoder.layers(in_unit_range(images_bSS3)), dim=1)}


def stored(parts: Iterator[Tensor], rows: int, scratch: Scratch) -> Tensor:
    """Parts [b, ...] concatenated to [rows, ...], mapped from an unnamed file that is freed with the tensor.

    The system keeps or drops the file's pages, so memory holds only what is in use.

    Raises:
        ValueError: the disk has too little room.
    """
    first = next(parts)
    shape = (rows, *first.shape[1:])
    with tempfile.NamedTemporaryFile(dir=scratch.folder, prefix="tips-ray-features-") as file:
        _reserve(file.fileno(), os.path.dirname(file.name), prod(shape) * scratch.dtype.itemsize)
        found = torch.from_file(file.name, shared=True, size=prod(shape), dtype=scratch.dtype).view(shape)
    place = 0
    for part in chain([first], parts):
        found[place : place + len(part)] = part
        place += len(part)
    assert place == rows
    return found


class FrozenData:
    """Features of a data set, computed once. Patches take N * L * D * 4 bytes of disk (fp16: half), layers 4 x that."""

    def __init__(
        self,
        encoder: Encoder,
        dataset: Dataset,
        encoding: Encoding,
        scratch: Scratch | None = None,
        with_patches: bool = True,
    ) -> None:
        """Without `with_patches`, `train` and `test` have no patches, and no file is written for them."""
        self.encoder, self.dataset, self.encoding, self.scratch = encoder, dataset, encoding, scratch
        self.with_patches = with_patches

    @cached_property
    def train(self) -> Features:
        assert self.dataset.train is not None
        return self._features(self.dataset.train)

    @cached_property
    def test(self) -> Features:
        return self._features(self.dataset.test)

    @cached_property
    def mirrored_test(self) -> Features:
        """Features of the mirror images of the test images."""
        mirrored = replace(self.dataset.test, images_NSS3=self.dataset.test.images_NSS3.flip(2))
        return self._features(mirrored)

    @cached_property
    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Layer features of the training and of the test images."""
        assert self.dataset.train is not None
        return self._layers(self.dataset.train), self._layers(self.dataset.test)

    def _layers(self, examples: Examples) -> list[Tensor]:
        return layers_of(self.encoding, examples.images_NSS3, self.scratch)

    def _features(self, examples: Examples) -> Features:
        if self.with_patches:
            return features_of(self.encoding, examples.images_NSS3, self.scratch)
        return Features(torch.empty(0), embeddings_of(self.encoding, examples.images_NSS3))


def _reserve(file: int, folder: str, needed: int) -> None:
    """Allocate the file at once: writing to a mapped file kills the process if the disk is full."""
    try:
        os.posix_fallocate(file, 0, needed)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise ValueError(
            f"features of patches need {needed / 1e9:.1f} GB, {folder} has {shutil.disk_usage(folder).free / 1e9:.1f} "
            "GB free: set scratch to a larger disk, patch_dtype=fp16, or a smaller image_size_px"
        ) from None
