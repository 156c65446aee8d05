"""Columns of a file of embeddings (docs/formats.md). N rows, D width of an embedding, L patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import pyarrow as pa

_PLACE = [("sample_id", pa.int64()), ("key", pa.string()), ("shard", pa.string()), ("row", pa.int64())]
WEB, SYNTHETIC = "web_caption_embedding", "synthetic_caption_embeddings"


@dataclass(frozen=True)
class Layout:
    """Columns of a row and their shapes, known before the first row is embedded."""

    images: Mapping[str, tuple[int, ...]]
    """Shape of each column made from an image: [D], or [L, D] for `patches`."""
    text_width: int | None
    """D of caption embeddings; None: captions are not embedded."""
    dtype: Literal["float32", "float16"]

    @property
    def schema(self) -> pa.Schema:
        """Arrow schema of every file."""
        fields = [*_PLACE, *((name, self.kind(shape)) for name, shape in self.images.items())]
        if self.text_width:
            vector = self.kind((self.text_width,))
            fields += [(WEB, vector), (SYNTHETIC, pa.list_(vector))]
        return pa.schema([*fields, ("error", pa.string())])

    @property
    def row_bytes(self) -> int:
        """Approximate bytes of a good row with one synthetic caption."""
        numbers = sum(map(prod, self.images.values())) + 2 * (self.text_width or 0)
        return numbers * np.dtype(self.dtype).itemsize

    def kind(self, shape: Sequence[int]) -> pa.DataType:
        """Nested list type for arrays of this shape.

        Sizes are not part of the type, because Arrow cannot read fixed-size lists with nulls from Parquet.
        """
        kind = pa.from_numpy_dtype(np.dtype(self.dtype))
        for _ in shape:
            kind = pa.list_(kind)
        return kind

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Shape of one array in each column, for JSON."""
        images = {name: list(shape) for name, shape in self.images.items()}
        return images | ({name: [self.text_width] for name in (WEB, SYNTHETIC)} if self.text_width else {})


def arrays(values_GX: np.ndarray, is_there_N: Sequence[bool]) -> pa.Array:
    """One array of shape X per row; null where `is_there_N` is False, else the next of the G values."""
    there_N = np.asarray(is_there_N, bool)
    inner = _nested(values_GX)
    offsets = np.concatenate([[0], np.cumsum(there_N)]) * values_GX.shape[1]
    return pa.ListArray.from_arrays(offsets.astype(np.int32), inner, mask=pa.array(~there_N))


def lists_of_arrays(values_TX: np.ndarray, count_N: Sequence[int]) -> pa.Array:
    """One list of arrays per row, which takes the next `count_N` of the T values."""
    offsets = np.concatenate([[0], np.cumsum(count_N)])
    return pa.ListArray.from_arrays(offsets.astype(np.int32), arrays(values_TX, [True] * len(values_TX)))


def _nested(values_GX: np.ndarray) -> pa.Array:
    """The G * A parts of G arrays of shape [A, ...]."""
    parts = values_GX.reshape(-1, *values_GX.shape[2:])
    return pa.array(parts) if parts.ndim == 1 else arrays(parts, [True] * len(parts))
