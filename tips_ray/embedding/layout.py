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
    """What is kept of a row, known before the first one is embedded."""

    images: Mapping[str, tuple[int, ...]]
    """Shape of each column that an image gives: [D], or [L, D] of `patches`."""
    text_width: int | None
    """D of caption embeddings; None: captions are not embedded."""
    dtype: Literal["float32", "float16"]

    @property
    def schema(self) -> pa.Schema:
        """Of every file."""
        fields = [*_PLACE, *((name, self.kind(shape)) for name, shape in self.images.items())]
        if self.text_width:
            vector = self.kind((self.text_width,))
            fields += [(WEB, vector), (SYNTHETIC, pa.list_(vector))]
        return pa.schema([*fields, ("error", pa.string())])

    @property
    def row_bytes(self) -> int:
        """About what a good row takes, with one synthetic caption."""
        numbers = sum(map(prod, self.images.values())) + 2 * (self.text_width or 0)
        return numbers * np.dtype(self.dtype).itemsize

    def kind(self, shape: Sequence[int]) -> pa.DataType:
        """Nested lists for arrays of this shape.

        Their sizes are not part of the type: Arrow cannot read fixed-size lists with nulls among them from Parquet.
        """
        kind = pa.from_numpy_dtype(np.dtype(self.dtype))
        for _ in shape:
            kind = pa.list_(kind)
        return kind

    @property
    def shapes(self) -> dict[str, list[int]]:
        """Of one array in each column, as JSON has it."""
        images = {name: list(shape) for name, shape in self.images.items()}
        return images | ({name: [self.text_width] for name in (WEB, SYNTHETIC)} if self.text_width else {})


def arrays(values_GX: np.ndarray, is_there_N: Sequence[bool]) -> pa.Array:
    """One array of shape X per row; null where there is none, and the G others in their order."""
    there_N = np.asarray(is_there_N, bool)
    inner = _nested(values_GX)
    offsets = np.concatenate([[0], np.cumsum(there_N)]) * values_GX.shape[1]
    return pa.ListArray.from_arrays(offsets.astype(np.int32), inner, mask=pa.array(~there_N))


def lists_of_arrays(values_TX: np.ndarray, count_N: Sequence[int]) -> pa.Array:
    """A list of arrays per row: `count_N` of the T in their order."""
    offsets = np.concatenate([[0], np.cumsum(count_N)])
    return pa.ListArray.from_arrays(offsets.astype(np.int32), arrays(values_TX, [True] * len(values_TX)))


def _nested(values_GX: np.ndarray) -> pa.Array:
    """Of G arrays of shape [A, ...] their G A parts."""
    parts = values_GX.reshape(-1, *values_GX.shape[2:])
    return pa.array(parts) if parts.ndim == 1 else arrays(parts, [True] * len(parts))
