"""Folder of files made from a source, each of consecutive chunks and written once: embeddings, signals of curation.

`NAME.json` says what they were made from. Index and columns alone determine a file and its name: one listing shows what
is missing.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import pyarrow as pa

from tips_ray import storage
from tips_ray.data.index import Index
from tips_ray.data.tables import parquet_bytes
from tips_ray.storage import NotFoundError

VERSION = 1
FILE_BYTES = 32 << 20
"""Approximate size of a large data set's files; Ray passes a file as one block, which must stay below 128 MB."""
MOST_CHUNKS, FEWEST_FILES = 64, 64
"""Most chunks of a file; fewest files of a data set with that many chunks, so that small ones are spread out too."""
DICTIONARY: Any = ["shard", "error"]  # pyarrow's type stubs accept only bool
_WORDS = {"weights": "of another encoder", "data": "of other data, or the data have changed since"}


class ChunkFiles:
    """A folder or s3:// prefix with one kind of files of one source."""

    kind: ClassVar[str] = "embeddings"
    """What the files hold, in messages; also the folder below `uri` that has them."""
    manifest: ClassVar[str] = "embedding.json"

    def __init__(self, uri: str) -> None:
        self.uri = storage.resolved(uri)
        self.rows_uri = storage.join(self.uri, self.kind)
        self._manifest = storage.join(self.uri, self.manifest)

    def check(self, decides: Mapping[str, Any]) -> None:
        """Check that the folder's files, if any, were made from the same inputs.

        Args:
            decides: everything that the files depend on.

        Raises:
            ValueError: the folder holds files made from other inputs.
        """
        held = self._read().get("decides")
        if held is None:
            return
        wanted = {"version": VERSION, **decides}
        for name in {**held, **wanted}:
            if held.get(name) != wanted.get(name):
                what = _WORDS.get(name) or f"with {name} {held.get(name)}, not {wanted.get(name)}"
                raise ValueError(f"{self.uri} holds {self.kind} {what}; choose another OUT")

    def data_of(self, index: Index) -> str:
        """Fingerprint of the data of `index`, or what version 1 called them where the folder has them by that."""
        held = self._read().get("decides", {}).get("data")
        return index.earlier if held and held == index.earlier else index.fingerprint

    def checkpoint_of(self, model: str) -> str:
        """The checkpoint of the run `model` that made this folder's files; empty if the run made none.

        Raises:
            ValueError: the checkpoint no longer exists.
        """
        held = self._read()
        checkpoint = held.get("checkpoint") or ""
        if held.get("model") != model or not checkpoint:
            return ""
        if not storage.exists(storage.join(checkpoint, "manifest.json")):
            raise ValueError(
                f"{self.uri} holds {self.kind} by {checkpoint}, which is there no more; choose another OUT"
            )
        return checkpoint

    def claim(self, decides: Mapping[str, Any], note: Mapping[str, Any]) -> None:
        """Write the manifest; if it exists, `check` it instead.

        Args:
            decides: everything that the files depend on.
            note: further information for readers.
        """
        storage.mark_output(self.rows_uri)
        content = {"decides": {"version": VERSION, **decides}, **note}
        if not storage.create_text(self._manifest, json.dumps(content, indent=1) + "\n"):
            self.check(decides)

    def _read(self) -> dict[str, Any]:
        """The content of the manifest, empty if there is none."""
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

    def missing(self, index: Index, row_bytes: int) -> list[range]:
        """Chunks of each missing file, in their order."""
        there = set(storage.list_names(self.rows_uri))
        return [chunks for chunks in files(index, row_bytes) if file_name(index, chunks) not in there]

    def write(self, name: str, table: pa.Table) -> bool:
        """Write a whole file; return False, and change nothing, if it is there already."""
        content = parquet_bytes(table, use_dictionary=DICTIONARY)
        return storage.create_bytes(storage.join(self.rows_uri, name), content)


def files(index: Index, row_bytes: int) -> list[range]:
    """Chunks of each file, in their order."""
    chunks, step = len(index.chunks.rows), chunks_per_file(index, row_bytes)
    return [range(start, min(start + step, chunks)) for start in range(0, chunks, step)]


def chunks_per_file(index: Index, row_bytes: int) -> int:
    """Number of chunks per file whose rows have about `row_bytes`; the last file may have fewer."""
    fitting = FILE_BYTES // (index.chunk_rows * row_bytes)
    return max(min(fitting, MOST_CHUNKS, len(index.chunks.rows) // FEWEST_FILES), 1)


def file_name(index: Index, chunks: Sequence[int]) -> str:
    """File name made of its first sample id and the one after its last."""
    table = index.chunks
    stop = table.first_sample[chunks[-1]] + table.rows[chunks[-1]]
    return f"{table.first_sample[chunks[0]]:010d}-{stop:010d}.parquet"
