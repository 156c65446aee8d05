"""Where embeddings are kept: `embedding.json` says of what, `embeddings/` has the files, each written once.

A file holds the rows of consecutive chunks of the index. Which chunks share a file follows from the index and the
columns alone, and so does its name: what is missing is known from one listing, whoever was killed when.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tips_ray import storage
from tips_ray.data.index import Index
from tips_ray.embedding.layout import Layout
from tips_ray.storage import NotFoundError

VERSION = 1
MANIFEST = "embedding.json"
FILE_BYTES = 32 << 20
"""Of a large data set's files, about; a file passes through Ray as one block, which must stay below 128 MB."""
MOST_CHUNKS, FEWEST_FILES = 64, 64
"""Of a file; of a data set, as far as it has so many chunks: a small one is shared out and kept in small parts too."""
DICTIONARY: Any = ["shard", "error"]  # pyarrow's own types know of True and False alone
_WORDS = {"weights": "of another encoder", "data": "of other data, or the data have changed since"}


class EmbeddingFolder:
    """A folder or s3:// prefix with the embeddings of one source by one encoder."""

    def __init__(self, uri: str) -> None:
        self.uri = storage.resolved(uri)
        self.rows_uri = storage.join(self.uri, "embeddings")
        self._manifest = storage.join(self.uri, MANIFEST)

    def check(self, decides: Mapping[str, Any]) -> None:
        """
        Args:
            decides: all that a number depends on.

        Raises:
            ValueError: the folder holds embeddings that depend on something else.
        """
        held = self._read().get("decides")
        if held is None:
            return
        wanted = {"version": VERSION, **decides}
        for name in {**held, **wanted}:
            if held.get(name) != wanted.get(name):
                what = _WORDS.get(name) or f"with {name} {held.get(name)}, not {wanted.get(name)}"
                raise ValueError(f"{self.uri} holds embeddings {what}; choose another OUT")

    def checkpoint_of(self, model: str) -> str:
        """The checkpoint that embeddings by `model`, a run that may train on, were begun with; empty: none were.

        Raises:
            ValueError: it is there no more.
        """
        held = self._read()
        checkpoint = held.get("checkpoint") or ""
        if held.get("model") != model or not checkpoint:
            return ""
        if not storage.exists(storage.join(checkpoint, "manifest.json")):
            raise ValueError(f"{self.uri} holds embeddings by {checkpoint}, which is there no more; choose another OUT")
        return checkpoint

    def claim(self, decides: Mapping[str, Any], note: Mapping[str, Any]) -> None:
        """Write down what the embeddings are of, unless that is there and the same; see `check`.

        Args:
            decides: all that a number depends on.
            note: what a reader may want to know beside it.
        """
        content = {"decides": {"version": VERSION, **decides}, **note}
        if not storage.create_text(self._manifest, json.dumps(content, indent=1) + "\n"):
            self.check(decides)

    def _read(self) -> dict[str, Any]:
        """The content of `embedding.json`, empty where there is none."""
        try:
            content = storage.read_text(self._manifest)
        except NotFoundError:
            return {}
        try:
            held = json.loads(content)
            dict(held["decides"])
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{self._manifest} is damaged; choose another OUT") from None
        return held

    def missing(self, index: Index, layout: Layout) -> list[range]:
        """Chunks of each file that is not there, in their order."""
        there = set(storage.list_names(self.rows_uri))
        return [chunks for chunks in files(index, layout) if file_name(index, chunks) not in there]

    def write(self, name: str, table: pa.Table) -> bool:
        """Keep a file whole; False, and nothing changes, where it is there already."""
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd", use_dictionary=DICTIONARY)
        return storage.create_bytes(storage.join(self.rows_uri, name), buffer.getvalue().to_pybytes())


def files(index: Index, layout: Layout) -> list[range]:
    """Chunks of each file, in their order."""
    chunks, step = len(index.chunks.rows), chunks_per_file(index, layout)
    return [range(start, min(start + step, chunks)) for start in range(0, chunks, step)]


def chunks_per_file(index: Index, layout: Layout) -> int:
    """The last file may have fewer."""
    fitting = FILE_BYTES // (index.chunk_rows * layout.row_bytes)
    return max(min(fitting, MOST_CHUNKS, len(index.chunks.rows) // FEWEST_FILES), 1)


def file_name(index: Index, chunks: Sequence[int]) -> str:
    """By the sample ids inside: the first, and the one after the last."""
    table = index.chunks
    stop = table.first_sample[chunks[-1]] + table.rows[chunks[-1]]
    return f"{table.first_sample[chunks[0]]:010d}-{stop:010d}.parquet"
