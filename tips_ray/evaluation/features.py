"""Features of a data set by a frozen encoder, computed when a task first asks. N images, S side, L patches, D width.

b images are encoded at a time.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from tips_ray.evaluation.datasets import Dataset
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


class Reads(NamedTuple):
    """What tasks read beside the embeddings."""

    patches: bool = True
    layers: bool = False


PATCHES_ALONE = Reads()


class Encoded(NamedTuple):
    """Features of images, on the host."""

    features: Features
    """Embeddings in fp32; patches in a file of the scratch, empty if nothing reads them."""
    layers: list[Tensor]
    """Four tensors [N, L, D] in a file of the scratch; empty if nothing reads them."""


def encoded(
    encoding: Encoding, images_NSS3: Tensor, reads: Reads = PATCHES_ALONE, scratch: Scratch | None = None
) -> Encoded:
    """Features of uint8 RGB images, of which each passes through the encoder once."""
    wanted = {PATCHES: reads.patches, LAYERS: reads.layers}
    files = {name: ScratchFile(len(images_NSS3), scratch or Scratch()) for name, is_read in wanted.items() if is_read}
    embeddings: list[dict[str, Tensor]] = []
    for found in encoding(partial(_encoded, reads=reads), images_NSS3):
        for name, file in files.items():
            file.append(found.pop(name))
        embeddings.append({name: part_bE.float().cpu() for name, part_bE in found.items()})
    joined = {name: torch.cat([part[name] for part in embeddings]) for name in embeddings[0]}
    patches_NLD = files[PATCHES].rows if reads.patches else torch.empty(0)
    return Encoded(Features(patches_NLD, joined), list(files[LAYERS].rows.unbind(1)) if reads.layers else [])


def _encoded(encoder: Encoder, images_bSS3: Tensor, reads: Reads) -> dict[str, Tensor]:
    images_bCSS, layers = in_unit_range(images_bSS3), {}
    if reads.layers:
        features, found = encoder.features_with_layers(images_bCSS)
        layers = {LAYERS: torch.stack(found, dim=1)}
    else:
        features = encoder.features(images_bCSS)
    return {**features.embeddings, **layers, **({PATCHES: features.patches_BLD} if reads.patches else {})}


class ScratchFile:
    """Rows mapped from an unnamed file that is freed with them; the system keeps in memory only what is in use."""

    def __init__(self, count: int, scratch: Scratch) -> None:
        self._count, self._scratch, self._place = count, scratch, 0
        self._rows: Tensor | None = None

    def append(self, part: Tensor) -> None:
        """Add rows [b, ...].

        Raises:
            ValueError: the disk has too little room.
        """
        if self._rows is None:
            self._rows = self._mapped((self._count, *part.shape[1:]))
        self._rows[self._place : self._place + len(part)] = part
        self._place += len(part)

    @property
    def rows(self) -> Tensor:
        """All rows, once all are there."""
        assert self._rows is not None and self._place == self._count
        return self._rows

    def _mapped(self, shape: tuple[int, ...]) -> Tensor:
        folder, dtype = self._scratch
        with tempfile.NamedTemporaryFile(dir=folder, prefix="tips-ray-features-") as file:
            _reserve(file.fileno(), os.path.dirname(file.name), prod(shape) * dtype.itemsize)
            return torch.from_file(file.name, shared=True, size=prod(shape), dtype=dtype).view(shape)


class FrozenData:
    """Features of a data set, computed once. Patches take N * L * D * 4 bytes of disk (fp16: half), layers 4 x that."""

    def __init__(
        self,
        encoder: Encoder,
        dataset: Dataset,
        encoding: Encoding,
        scratch: Scratch | None = None,
        reads: Reads = PATCHES_ALONE,
    ) -> None:
        """What `reads` leaves out is neither kept nor written to a file."""
        self.encoder, self.dataset, self.encoding, self.scratch = encoder, dataset, encoding, scratch
        self.reads = reads

    @cached_property
    def encoded_train(self) -> Encoded:
        assert self.dataset.train is not None
        return self._encoded(self.dataset.train.images_NSS3)

    @cached_property
    def encoded_test(self) -> Encoded:
        return self._encoded(self.dataset.test.images_NSS3)

    @property
    def train(self) -> Features:
        return self.encoded_train.features

    @property
    def test(self) -> Features:
        return self.encoded_test.features

    @property
    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Layer features of the training and of the test images."""
        assert self.reads.layers
        return self.encoded_train.layers, self.encoded_test.layers

    @cached_property
    def mirrored_test(self) -> Features:
        """Features of the mirror images of the test images, without layers."""
        mirrored_NSS3 = self.dataset.test.images_NSS3.flip(2)
        return encoded(self.encoding, mirrored_NSS3, self.reads._replace(layers=False), self.scratch).features

    def _encoded(self, images_NSS3: Tensor) -> Encoded:
        return encoded(self.encoding, images_NSS3, self.reads, self.scratch)


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
