"""Types that the formats have in common: shards, chunks, and what a scan of a shard finds."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from tips_ray.data.columns import SourceRow
from tips_ray.storage import StorageError


@dataclass(frozen=True)
class Shard:
    """One tar, one Parquet file, or one folder of images, described so that any process can read it."""

    path: str
    """URI of the tar, the Parquet file, or the folder's table of captions."""
    format: str
    bytes: int
    etag: str


class Chunk(NamedTuple):
    """Consecutive rows of a shard that are read together. `start`, `stop` are the format's own (docs/formats.md)."""

    row: int
    rows: int
    start: int
    stop: int
    first_sample: int = 0
    """Sample id of the first row; known once all shards are counted."""


class NoRowsError(StorageError):
    """A shard has no rows, so that its columns are unknown."""


class Reject(NamedTuple):
    """A row known to be bad before it is needed, or (with an empty key) the rest of a shard that cannot be read."""

    row: int
    key: str
    reason: str


@dataclass(frozen=True)
class Scan:
    """All chunks of a shard in order, and its bad rows, which keep their place in the chunks."""

    chunk_C4: NDArray[np.int64]
    """row, rows, start, stop of each chunk: an array, because a large data set has millions."""
    rejects: list[Reject]
    unused_images: int = 0
    """Members of a tar that are named as images and are the image of no row."""
    unused_image: str = ""
    """Name of the first one."""

    @classmethod
    def of(cls, chunks: list[Chunk], rejects: Iterable[Reject] = (), unused: Sequence[str] = ()) -> Self:
        """From chunks whose sample ids are not known yet; `unused` names members that look like images of no row."""
        chunk_C4 = np.array([chunk[:4] for chunk in chunks], np.int64).reshape(-1, 4)
        return cls(chunk_C4, list(map(_written, rejects)), len(unused), next(iter(unused), ""))

    @property
    def chunks(self) -> list[Chunk]:
        """The chunks one by one."""
        return [Chunk(*chunk) for chunk in self.chunk_C4.tolist()]

    @property
    def rows(self) -> int:
        """Rows of the shard, bad ones included."""
        return int(self.chunk_C4[:, 1].sum())


def _written(reject: Reject) -> Reject:
    return Reject(reject.row, as_utf8(reject.key), as_utf8(reject.reason))


def as_utf8(name: str) -> str:
    """A name that any file can hold: bytes of a file's name that are no UTF-8 are written as `\\udce9`."""
    return name.encode("utf-8", "backslashreplace").decode()


class Content(NamedTuple):
    """A row before it has a sample id."""

    key: str
    image: bytes
    captions: tuple[str, list[str]]
    """Web caption, synthetic captions."""
    error: str = ""


def source_rows(chunk: Chunk, contents: list[Content]) -> list[SourceRow]:
    """Number the rows of a chunk; a bad row has no image."""
    return [
        SourceRow(
            sample_id=chunk.first_sample + number,
            key=as_utf8(content.key),
            image=b"" if content.error else content.image,
            web_caption=content.captions[0],
            synthetic_captions=content.captions[1],
            error=as_utf8(content.error),
        )
        for number, content in enumerate(contents)
    ]
