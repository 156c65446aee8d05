"""Unit vectors of a folder of embeddings, a file at a time. N rows of a file, D width."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tips_ray import storage
from tips_ray.data.tables import read_table

Vectors = NDArray[np.float32]


@dataclass(frozen=True)
class EmbeddedRows:
    """The files of a folder of embeddings in the order of their rows. K rows."""

    uri: str
    """Folder of the files."""
    names: tuple[str, ...]
    image: str
    """The column that images are compared by."""
    sample_K: NDArray[np.int64]
    """Sample id in the raw data of each row."""

    @classmethod
    def at(cls, uri: str, image: str, sample_K: NDArray[np.int64]) -> "EmbeddedRows":
        """All files below a folder; their names sort by row."""
        names = tuple(name for name in storage.list_names(uri) if name.endswith(".parquet"))
        return cls(uri, names, image, sample_K)

    def block(self, number: int, column: str) -> Vectors:
        """A column of a file as unit vectors [N, D]; zeros where a row has none."""
        return unit_vectors(read_table(storage.join(self.uri, self.names[number]), [column])[column])

    def blocks(self) -> Iterator[tuple[int, Vectors]]:
        """Number of the first row, and vectors of the images, of each file."""
        first = 0
        for number in range(len(self.names)):
            vectors_ND = self.block(number, self.image)
            yield first, vectors_ND
            first += len(vectors_ND)

    def all(self) -> Vectors:
        """Vectors of the images of all files."""
        return np.concatenate([vectors_ND for _, vectors_ND in self.blocks()])


def unit_vectors(column: pa.ChunkedArray) -> Vectors:
    """Lists of numbers, all of one length or null, as vectors of length 1; null and vectors of no length give zeros."""
    array = column.combine_chunks()
    flat = array.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    is_there_N = array.is_valid().to_numpy(zero_copy_only=False)
    count = int(is_there_N.sum())
    values_MD = np.nan_to_num(flat.reshape(count, -1 if count else 0), posinf=0, neginf=0)
    vectors_ND = np.zeros((len(array), values_MD.shape[1]), np.float32)
    length_M1 = np.linalg.norm(values_MD, axis=1, keepdims=True)
    vectors_ND[is_there_N] = values_MD / np.where(length_M1 > 0, length_M1, 1)
    return vectors_ND
