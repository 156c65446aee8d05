"""A caption object: the captions of consecutive chunks of a shard, one Parquet row group each (docs/formats.md)."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

VERSION = 1
METADATA = b"tips_ray"
SCHEMA = pa.schema(
    [("row", pa.int64()), ("sha256", pa.binary(32)), ("captions", pa.list_(pa.string())), ("error", pa.string())]
)


class DamagedError(ValueError):
    """An object of the store is not what its name says; the message names it."""


@dataclass(frozen=True)
class CaptionedShard:
    """A shard as the store knows it: what it is, and not where an index has it.

    `name` stays the same when an index gets other shards, sources or weights; it changes with the shard's content.
    """

    path: str
    bytes: int
    etag: str
    format: str
    image_column: str
    chunk_rows: int
    chunks: int
    """Number of its chunks; follows from the rest, and is not in the name."""

    @cached_property
    def name(self) -> str:
        """Its folder: 32 hexadecimal digits."""
        identity = {key: value for key, value in asdict(self).items() if key != "chunks"}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class ChunkCaptions(NamedTuple):
    """Captions of a chunk, one entry per row, in the shard's order. A row has captions or an error."""

    row: int
    """First row in the shard."""
    sha256: list[bytes]
    """Of the encoded image; 32 zero bytes where it could not be read."""
    captions: list[list[str]]
    error: list[str]


class CaptionObject:
    """Content of an object whose head is read and whose chunks are not decoded yet.

    Raises:
        DamagedError: the bytes are no caption object.
    """

    def __init__(self, uri: str, content: bytes) -> None:
        self.uri = uri
        try:
            self._file = pq.ParquetFile(pa.BufferReader(content))
            self.head: dict[str, Any] = json.loads((self._file.metadata.metadata or {})[METADATA])
            self.shard = CaptionedShard(**self.head["shard"])
            self.start, self.stop = int(self.head["start"]), int(self.head["stop"])
        except (pa.ArrowException, OSError, KeyError, TypeError, ValueError) as error:
            raise damaged(uri, f"it is no caption object: {_one_line(error)}") from None
        if self._file.num_row_groups != self.stop - self.start:
            raise damaged(uri, f"it holds {self._file.num_row_groups} chunks instead of {self.stop - self.start}")

    def chunk(self, number: int) -> ChunkCaptions:
        """The captions of chunk `number` of the shard.

        Raises:
            DamagedError: they cannot be decoded.
        """
        try:
            columns = self._file.read_row_group(number - self.start, use_threads=False).to_pydict()
            return ChunkCaptions(columns["row"][0], columns["sha256"], columns["captions"], columns["error"])
        except (pa.ArrowException, OSError, KeyError, IndexError) as error:
            raise damaged(self.uri, f"chunk {number} cannot be decoded: {_one_line(error)}") from None

    def chunks(self) -> list[ChunkCaptions]:
        """All of them."""
        return [self.chunk(number) for number in range(self.start, self.stop)]


def object_bytes(fingerprint: str, shard: CaptionedShard, start: int, chunks: Sequence[ChunkCaptions]) -> bytes:
    """The object that holds `chunks`, the first of them number `start` of the shard."""
    head = {"version": VERSION, "fingerprint": fingerprint, "shard": asdict(shard)}
    head |= {"start": start, "stop": start + len(chunks)}
    buffer = pa.BufferOutputStream()
    schema = SCHEMA.with_metadata({METADATA: json.dumps(head).encode()})
    with pq.ParquetWriter(buffer, schema, compression="zstd", use_dictionary=False, write_statistics=False) as writer:
        for chunk in chunks:
            writer.write_table(_table(chunk, schema))
    return buffer.getvalue().to_pybytes()


def damaged(uri: str, reason: str) -> DamagedError:
    """The sentence for an object that cannot be used."""
    return DamagedError(f"{uri}: {reason}; delete it and caption again: its chunks, and no others, are made anew")


def image_sha256(images: Iterable[bytes]) -> list[bytes]:
    """The checked column; zeros for an image without bytes."""
    return [hashlib.sha256(image).digest() if image else bytes(32) for image in images]


def _table(chunk: ChunkCaptions, schema: pa.Schema) -> pa.Table:
    rows = list(range(chunk.row, chunk.row + len(chunk.sha256)))
    return pa.table([rows, *chunk[1:]], schema=schema)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
