"""Images of a data set in a folder, local or s3://. Unusable images are counted and left out. S side."""

import errno
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tips_ray import storage
from tips_ray.data.decode import BadImage, open_image, reduction_for
from tips_ray.evaluation.datasets.examples import Examples, squashed_image

MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS = 50 * 2**20, 100_000_000
THREADS_THAT_WAIT, READ_AHEAD = 4, 64
"""Threads beyond those of torch, which is told this process's CPUs, and most items that are read at a time."""
Item = TypeVar("Item")
Found = TypeVar("Found")


class FoundImage(NamedTuple):
    """An image squashed for the encoder."""

    pixels_SS3: Tensor
    size: tuple[int, int]
    """Height and width before squashing."""


def read_parts(
    folder: str, read: Callable[[str, Counter[str]], Examples], with_train: bool
) -> tuple[Examples | None, Examples, dict[str, int]]:
    """`train` (if `with_train`) and `val` of a folder, and the number of images left out of each, by reason."""

    def part(name: str, left_out: Counter[str]) -> Examples:
        return read(storage.join(folder, name), left_out)

    return counted_parts(part, "train" if with_train else None, "val")


def counted_parts(
    read: Callable[[str, Counter[str]], Examples], train: str | None, test: str
) -> tuple[Examples | None, Examples, dict[str, int]]:
    """Training images (if `train` names them), test images, and the number left out of each, by reason."""
    counts = {"train": Counter[str](), "val": Counter[str]()}
    learned = None if train is None else read(train, counts["train"])
    judged = read(test, counts["val"])
    return learned, judged, {f"{reason} ({part})": n for part, count in counts.items() for reason, n in count.items()}


def by_stem(folder: str) -> dict[str, str]:
    """URIs of the files in a folder by their names without suffix."""
    return {name.rsplit(".", 1)[0]: storage.join(folder, name) for name in storage.list_names(folder)}


def read_image(uri: str, size_px: int, left_out: Counter[str]) -> FoundImage | None:
    """The image; None, and counted in `left_out`, if it is missing or bad."""
    try:
        content = storage.read_bytes(uri)
    except storage.NotFoundError:
        left_out["missing"] += 1
        return None
    return decoded_image(content, size_px, left_out)


def read_images(uris: Iterable[str], size_px: int, left_out: Counter[str]) -> Iterator[FoundImage | None]:
    """`read_image` of each, in order, by threads."""

    def read(uri: str) -> tuple[FoundImage | None, Counter[str]]:
        counts = Counter[str]()
        return read_image(uri, size_px, counts), counts

    for image, counts in ahead(read, uris):
        left_out.update(counts)
        yield image


def ahead(read: Callable[[Item], Found], items: Iterable[Item]) -> Iterator[Found]:
    """Results in the order of the items, by threads that are at most `READ_AHEAD` items ahead.

    Decoders and storage leave other threads the time that they take, so that threads use all CPUs of this process.
    """
    waiting: deque[Future[Found]] = deque()
    with ThreadPoolExecutor(torch.get_num_threads() + THREADS_THAT_WAIT, "tips-ray-read") as pool:
        for item in items:
            waiting.append(pool.submit(read, item))
            if len(waiting) >= READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def decoded_image(content: bytes, size_px: int, left_out: Counter[str]) -> FoundImage | None:
    """The image of an encoded file; None, and counted in `left_out`, if it is bad."""
    try:
        opened = open_image(content, MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS)
        size = opened.height, opened.width
        pixels_HWC = opened.pixels(reduction_for(min(size) / size_px))
    except BadImage as error:
        left_out[error.reason] += 1
        return None
    return FoundImage(squashed_image(pixels_HWC, size_px), size)


class FileRows:
    """Arrays of one shape, collected in an unnamed file, so that a data set may be larger than memory."""

    def __init__(self, shape: tuple[int, ...], dtype: type = np.uint8) -> None:
        self._shape, self._dtype, self._count = shape, dtype, 0
        self._file = tempfile.TemporaryFile(prefix="tips-ray-data-")

    def __len__(self) -> int:
        return self._count

    def append(self, row: Tensor) -> None:
        """Add an array of the shape.

        Raises:
            ValueError: the disk is full.
        """
        assert row.shape == self._shape
        try:
            self._file.write(row.numpy().astype(self._dtype, copy=False).tobytes())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise
            held = f"{self._count:,} arrays of {self._shape} have filled {tempfile.gettempdir()}"
            raise ValueError(f"{held}: set TMPDIR to a larger disk, or a smaller image_size_px") from None
        self._count += 1

    def rows(self) -> Tensor:
        """All arrays, [N, ...], mapped from the file; the system keeps in memory what is in use."""
        if not self._count:
            return torch.empty(0, *self._shape)
        self._file.flush()
        # mode c: a mapping that numpy lets torch write to, though nobody does
        return torch.from_numpy(np.memmap(self._file, self._dtype, "c", shape=(self._count, *self._shape)))


class ImageStack(FileRows):
    """Images of one size."""

    def __init__(self, size_px: int) -> None:
        super().__init__((size_px, size_px, 3))

    def images(self, folder: str, left_out: Counter[str]) -> Tensor:
        """All images, uint8 [N, S, S, 3].

        Raises:
            ValueError: there are no images; the message names `folder` and what was left out.
        """
        if not len(self):
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            raise ValueError(f"{folder} has no image that can be used ({reasons or 'it has no images'})")
        return self.rows()
