"""A chunk with decoded images. N rows of the chunk, G good rows among them, S side of the images."""

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.decode import BadImage, decode, squashed
from tips_ray.data.index import Index

_SCHEMA = pa.schema(
    [("number", pa.int64()), ("pixels", pa.large_binary()), ("keys", pa.list_(pa.string()))]
    + [("errors", pa.list_(pa.string())), ("web_captions", pa.list_(pa.string()))]
    + [("synthetic_captions", pa.list_(pa.list_(pa.string())))]
)


class DecodedChunk(NamedTuple):
    """A chunk ready for an encoder; lists have one entry per row."""

    number: int
    """Number of the chunk in the index."""
    pixels_GSS3: np.ndarray
    """Images of the good rows in their order, uint8, squashed to a square."""
    keys: list[str]
    errors: list[str]
    """Why a row has no pixels; empty if it has."""
    web_captions: list[str]
    synthetic_captions: list[list[str]]

    @property
    def is_good_N(self) -> np.ndarray:
        """True for rows that have pixels, [N]."""
        return np.array([not error for error in self.errors], bool)

    def table(self) -> pa.Table:
        """The chunk as a table of one row."""
        cells = self._replace(pixels_GSS3=self.pixels_GSS3.tobytes())  # pyright: ignore[reportArgumentType]
        return pa.table([[cell] for cell in cells], schema=_SCHEMA)

    @classmethod
    def of_row(cls, row: dict[str, Any], size_px: int) -> "DecodedChunk":
        """The chunk from a row of `table`."""
        pixels_GSS3 = np.frombuffer(row["pixels"], np.uint8).reshape(-1, size_px, size_px, 3)
        return cls(row["number"], pixels_GSS3, *(row[name] for name in cls._fields[2:]))


def decoded_chunk(index: Index, number: int, size_px: int, config: EmbeddingConfig) -> DecodedChunk:
    """Read a chunk and prepare its images as `tips-ray evaluate` does."""
    rows = index.read(number)
    images = [_pixels(row, size_px, config) for row in rows]
    good = [image for image in images if isinstance(image, np.ndarray)]
    return DecodedChunk(
        number,
        np.stack(good) if good else np.empty((0, size_px, size_px, 3), np.uint8),
        [row["key"] for row in rows],
        ["" if isinstance(image, np.ndarray) else image for image in images],
        [row["web_caption"] for row in rows],
        [row["synthetic_captions"] for row in rows],
    )


def _pixels(row: SourceRow, size_px: int, config: EmbeddingConfig) -> np.ndarray | str:
    """Pixels of a row's image, or the reason why there are none."""
    if row["error"]:
        return row["error"]
    try:
        pixels_HWC = decode(row["image"], config.max_image_bytes, config.max_image_pixels, size_px)
    except BadImage as error:
        return str(error)
    return squashed(pixels_HWC, size_px)
