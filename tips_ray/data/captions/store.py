"""The caption store: every chunk's captions exactly once (docs/formats.md).

A chunk has two places, and both are known without a listing: an object of its own, and the object of its group of
`GROUP_CHUNKS` chunks, which compaction makes once the group is complete. Writers create the first, if neither exists. A
group is created before its single chunks are deleted: a reader that looks in group, single and again group finds it.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tips_ray import storage
from tips_ray.data.sources.parquet_types import refuse_pickles
from tips_ray.storage import NotFoundError

VERSION = 2
METADATA = b"tips_ray"
SCHEMA = pa.schema(
    [("row", pa.int64()), ("sha256", pa.binary(32)), ("captions", pa.list_(pa.string())), ("error", pa.string())]
)
GROUP_CHUNKS = 96
"""Chunks that share an object once compacted: 6,144 rows, so that a shard of 10,000 images has two objects."""
THREADS = 32
FINGERPRINT_DIGITS = 16
DESCRIPTION = "captioner.json"


class DamagedError(ValueError):
    """An object of the store is not what its name says; the message names it."""


@dataclass(frozen=True)
class CaptionedShard:
    """A shard as the store knows it: by its content, wherever it lies.

    `name` stays the same when a shard is copied, or an index gets other shards, sources or weights.
    """

    path: str
    """Where it was when it was captioned, for messages; not in the name."""
    bytes: int
    etag: str
    """Not in the name."""
    format: str
    image_column: str
    chunk_rows: int
    chunks: int
    """Number of its chunks; follows from the rest, and is not in the name."""
    content: str = ""
    """Hash of its content (`sources.content`); empty in version 1, whose names cover path and etag instead."""

    @cached_property
    def name(self) -> str:
        """Its folder: 32 hexadecimal digits."""
        left_out = ("chunks", "path", "etag") if self.content else ("chunks", "content")
        identity = {key: value for key, value in asdict(self).items() if key not in left_out}
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:32]


class ChunkCaptions(NamedTuple):
    """Captions of a chunk, one entry per row, in the shard's order. A row has captions or an error."""

    row: int
    """First row in the shard."""
    sha256: list[bytes]
    """Hash of the encoded image; 32 zero bytes where it could not be read."""
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
            refuse_pickles(self._file.schema_arrow, "its columns")
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
        """The captions of all chunks of the object."""
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
    """The column `sha256`; zeros for an image without bytes."""
    return [hashlib.sha256(image).digest() if image else bytes(32) for image in images]


def _table(chunk: ChunkCaptions, schema: pa.Schema) -> pa.Table:
    rows = list(range(chunk.row, chunk.row + len(chunk.sha256)))
    return pa.table([rows, *chunk[1:]], schema=schema)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


class CaptionStore:
    """The captions of one captioner in a store; several may share its URI."""

    def __init__(self, uri: str, fingerprint: str) -> None:
        self.fingerprint = fingerprint[:FINGERPRINT_DIGITS]
        self.folder = storage.join(storage.resolved(uri), self.fingerprint)

    def describe(self, description: dict[str, Any]) -> None:
        """Leave a note of what the captioner is, unless there is one; its writers call this first."""
        storage.mark_output(self.folder)
        storage.create_text(storage.join(self.folder, DESCRIPTION), json.dumps(description, indent=1))

    def description(self) -> dict[str, Any]:
        """The note of `describe`; empty where there is none."""
        try:
            return json.loads(storage.read_text(storage.join(self.folder, DESCRIPTION)))
        except NotFoundError:
            return {}

    def known(self, shard: CaptionedShard) -> CaptionedShard:
        """The shard under the name of version 1 where its captions are under that alone, else as it is."""
        before = replace(shard, content="")
        there = _folders_at_first(self.folder) if before != shard else ()
        return before if before.name in there and shard.name not in there else shard

    def write(self, shard: CaptionedShard, chunk: int, captions: ChunkCaptions) -> bool:
        """Store the captions of a chunk; returns False and changes nothing where they are there already."""
        shard = self.known(shard)
        place, group = self.uri(shard.name, chunk, chunk + 1), self._group_uri(shard, chunk)
        if storage.exists(group):
            return False
        created = storage.create_bytes(place, object_bytes(self.fingerprint, shard, chunk, [captions]))
        if created and group != place and storage.exists(group):  # it was compacted between the two lines above
            storage.delete(place)
            return False
        return created

    def read(self, shard: CaptionedShard, chunk: int) -> ChunkCaptions | None:
        """The captions of a chunk; None where they are not made yet.

        Raises:
            DamagedError: the object that holds them is not what it should be.
        """
        shard = self.known(shard)
        place, group = self.uri(shard.name, chunk, chunk + 1), self._group_uri(shard, chunk)
        for uri in (place,) if group == place else (group, place, group):
            if found := self.open(uri):
                return found.chunk(chunk)
        return None

    def read_many(self, places: Sequence[tuple[CaptionedShard, int]]) -> list[ChunkCaptions | None]:
        """`read` of several chunks, such as a window's; at the same time where the store is remote."""
        if storage.is_local(self.folder):
            return [self.read(*place) for place in places]
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda place: self.read(*place), places))

    def present(self, shard: CaptionedShard) -> set[int]:
        """Chunks of a shard that have captions, from one listing, or two while some are missing.

        A listing may miss what compaction moves while it runs; what the first one misses, the second finds.
        """
        name = self.known(shard).name
        found = self._listed(name)
        return found if len(found) == shard.chunks else found | self._listed(name)

    def missing(self, shards: Sequence[CaptionedShard]) -> Iterator[list[int]]:
        """Chunks without captions, a list per shard in their order; one listing per shard, many at a time."""
        with ThreadPoolExecutor(THREADS) as pool:
            for shard, present in zip(shards, pool.map(self.present, shards), strict=True):
                yield [chunk for chunk in range(shard.chunks) if chunk not in present]

    def shard_names(self) -> list[str]:
        """Folders of the shards that have captions, in their order."""
        return [uri.rsplit("/", 1)[1] for uri in storage.list_folders(self.folder)]

    def names(self, shard_name: str) -> list[str]:
        """Names of a shard's objects, in the order of their chunks."""
        return storage.list_names(storage.join(self.folder, shard_name))

    def chunks(self, shard_name: str) -> Iterator[tuple[CaptionedShard, int, ChunkCaptions]]:
        """Every chunk of a shard once, with its number, nearly in order; compaction may go on meanwhile.

        Raises:
            DamagedError: an object is not what its name says.
        """
        seen: set[int] = set()
        moved = True
        while moved:
            moved = False
            for start, stop in sorted(covered(self.names(shard_name)), key=lambda span: (span[0], -span[1])):
                new = [chunk for chunk in range(start, stop) if chunk not in seen]
                found = self.open(self.uri(shard_name, start, stop)) if new else None
                if found:
                    yield from ((found.shard, chunk, found.chunk(chunk)) for chunk in new)
                    seen.update(new)
                elif new:
                    moved = True

    def open(self, uri: str) -> CaptionObject | None:
        """The object at `uri`; None where there is none.

        Raises:
            DamagedError: its content does not belong there.
        """
        try:
            found = CaptionObject(uri, storage.read_bytes(uri))
        except NotFoundError:
            return None
        told = self.uri(found.shard.name, found.start, found.stop)
        if told != uri or found.head["fingerprint"] != self.fingerprint:
            raise damaged(uri, f"its content belongs to {told} of the captioner {found.head['fingerprint']}")
        return found

    def uri(self, shard_name: str, start: int, stop: int) -> str:
        """Where an object with chunks [start, stop) of a shard is."""
        return storage.join(self.folder, shard_name, f"{start:08d}-{stop:08d}.parquet")

    def _listed(self, shard_name: str) -> set[int]:
        return {chunk for span in covered(self.names(shard_name)) for chunk in range(*span)}

    def _group_uri(self, shard: CaptionedShard, chunk: int) -> str:
        return self.uri(shard.name, *group_of(shard, chunk))


@lru_cache(maxsize=8)
def _folders_at_first(uri: str) -> frozenset[str]:
    """Names of the folders that were there when this process first looked: later ones have names of this version."""
    return frozenset(folder.rsplit("/", 1)[1] for folder in storage.list_folders(uri))


def imported_store(uri: str, name: str) -> CaptionStore:
    """Captions that another program wrote, under the name that they were imported by."""
    return CaptionStore(uri, hashlib.sha256(repr({"imported": name}).encode()).hexdigest())


def group_of(shard: CaptionedShard, chunk: int) -> tuple[int, int]:
    """Chunks [start, stop) of the group that a chunk belongs to."""
    start = chunk - chunk % GROUP_CHUNKS
    return start, min(start + GROUP_CHUNKS, shard.chunks)


def captioners(uri: str) -> list[CaptionStore]:
    """Every captioner that has captions at `uri`."""
    return [CaptionStore(uri, folder.rsplit("/", 1)[1]) for folder in storage.list_folders(uri)]


def covered(names: Iterable[str]) -> dict[tuple[int, int], str]:
    """Chunk ranges of the objects with these names; other names are left out."""
    return {span: name for name in names if (span := _span(name))}


def _span(name: str) -> tuple[int, int] | None:
    """`00000096-00000192.parquet` -> (96, 192)."""
    start, _, stop = name.removesuffix(".parquet").partition("-")
    return (int(start), int(stop)) if start.isdigit() and stop.isdigit() else None
