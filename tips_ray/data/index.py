"""The index of a data set: shards, chunks and their byte ranges, sample ids, bad rows (docs/formats.md)."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tips_ray import errors
from tips_ray.config import DataConfig
from tips_ray.data import sources
from tips_ray.data.columns import SourceRow
from tips_ray.data.order import Order
from tips_ray.data.sources import Chunk, Columns, Scan, Shard

VERSION = 2
THREADS = 16
log = logging.getLogger(__name__)

_SHARDS = pa.schema(
    [("source", pa.int16()), ("path", pa.string()), ("rows", pa.int64()), ("first_sample", pa.int64())]
    + [("bytes", pa.int64()), ("etag", pa.string()), ("name", pa.string()), ("content", pa.string())]
    + [("unused_images", pa.int64()), ("unused_image", pa.string())]
)
REJECTS = pa.schema([("path", pa.string()), ("row", pa.int64()), ("key", pa.string()), ("reason", pa.string())])

Job = tuple[Shard, Columns]
Scanned = tuple[Scan, str]
"""What a scan of a shard found, and the hash of its content."""
Mapper = Callable[[Callable[[Job], Scanned], list[Job]], Iterable[Scanned]]
"""Applies a function to every shard and gives the results in order: threads here, Ray tasks in a job."""


@dataclass(frozen=True)
class IndexedSource:
    """A source once its format and columns are known."""

    uri: str
    format: str
    columns: Columns
    weight: float
    rows: int


class ChunkTable(NamedTuple):
    """Columns of the chunk table, one entry per chunk, in shard order."""

    shard: NDArray[np.int32]
    row: NDArray[np.int64]
    rows: NDArray[np.int32]
    first_sample: NDArray[np.int64]
    start: NDArray[np.int64]
    stop: NDArray[np.int64]


@dataclass(frozen=True)
class Index:
    """What a run knows of its data. Bad rows keep their sample id; `rejects` lists those known in advance."""

    fingerprint: str
    """Of what the data are, wherever they lie: names below the sources, sizes, contents, columns and chunks."""
    chunk_rows: int
    sources: tuple[IndexedSource, ...]
    shards: pa.Table
    chunks: ChunkTable
    rejects: pa.Table
    listing: str = ""
    """Name of where they lie and when they were changed: see `listing_mark`."""
    earlier: str = ""
    """Fingerprint that version 1 gave to these data at this place."""
    uri: str = ""
    """Folder of the index; empty for one that is not written."""

    @property
    def rows(self) -> int:
        """Samples of all sources; sample ids are 0..rows-1."""
        return sum(source.rows for source in self.sources)

    def sample(self, sample_id: int) -> tuple[Shard, int]:
        """The shard of a sample and its row there.

        Raises:
            ValueError: there is no such sample.
        """
        if not 0 <= sample_id < self.rows:
            raise ValueError(f"sample id ({sample_id}) must lie in 0..{self.rows - 1}")
        number = int(self.chunks_of(np.array([sample_id]))[0])
        chunk = self.chunk(number)
        return self.shard(int(self.chunks.shard[number]))[0], chunk.row + sample_id - chunk.first_sample

    def chunks_of(self, sample_id_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """The number of the chunk that holds each sample."""
        return np.searchsorted(self.chunks.first_sample, sample_id_N, side="right") - 1

    def shard(self, number: int) -> tuple[Shard, Columns]:
        """A shard and the columns to read of it."""
        row = self.shards.slice(number, 1).to_pylist()[0]
        source = self.sources[row["source"]]
        return Shard(row["path"], source.format, row["bytes"], row["etag"]), source.columns

    def shards_of(self, source: int) -> list[Shard]:
        """All shards of a source."""
        rows = [row for row in self.shards.to_pylist() if row["source"] == source]
        return [Shard(row["path"], self.sources[source].format, row["bytes"], row["etag"]) for row in rows]

    def chunk(self, number: int) -> Chunk:
        """Place of a chunk in its shard."""
        table = self.chunks
        columns = (table.row, table.rows, table.start, table.stop, table.first_sample)
        return Chunk(*(int(column[number]) for column in columns))

    def read(self, number: int) -> list[SourceRow]:
        """The rows of a chunk; see `sources.read_chunk`."""
        shard, columns = self.shard(int(self.chunks.shard[number]))
        return sources.read_chunk(shard, self.chunk(number), columns)

    def first_rows(self, source: int) -> list[SourceRow]:
        """The rows of a source's first chunk."""
        source_C = self.shards["source"].to_numpy()[self.chunks.shard]
        return self.read(int((source_C == source).argmax()))


def build_index(data: DataConfig, mapper: Mapper | None = None) -> Index:
    """Scan every shard; a pure function of the data, whatever the mapper.

    Raises:
        ValueError: a source has no rows, or a shard lacks a column; StorageError, a ValueError: it cannot be read.
    """
    listed = listed_shards(data)
    columns = [sources.columns_of(shards, source.columns) for shards, source in zip(listed, data.sources, strict=True)]
    jobs = [(shard, columns[number]) for number, shards in enumerate(listed) for shard in shards]
    scanned = list((mapper or _in_threads)(partial(_scan, data.chunk_rows), jobs))
    scans = [scan for scan, _ in scanned]
    shards = _shard_table(data, listed, scanned)
    rows = np.bincount(shards["source"].to_numpy(), shards["rows"].to_numpy()).astype(int).tolist()
    _check_rows(data, rows)
    described = tuple(
        IndexedSource(source.uri, listed[number][0].format, columns[number], source.weight, rows[number])
        for number, source in enumerate(data.sources)
    )
    rejects = [
        {"path": shard.path, **reject._asdict()}
        for (shard, _), found in zip(jobs, scans, strict=True)
        for reject in found.rejects
    ]
    chunks = _chunk_table(scans, shards["first_sample"].to_numpy())
    listing, earlier = _listing(data, listed, VERSION), _listing(data, listed, 1)
    table = pa.Table.from_pylist(rejects, REJECTS)
    mark = _fingerprint(data.chunk_rows, described, shards, chunks)
    return Index(mark, data.chunk_rows, described, shards, chunks, table, listing, earlier)


def listing_mark(data: DataConfig, version: int = VERSION) -> str:
    """Name of the folder of an index, from listings alone: sha256 in hexadecimal digits.

    It covers (path, bytes, etag) of every shard, formats, the config's columns and chunk size. Data that are copied or
    touched have another one, and the same `Index.fingerprint`.
    """
    return _listing(data, listed_shards(data), version)


def listed_shards(data: DataConfig) -> list[list[Shard]]:
    """The shards of each source, as `sources.shards`.

    Raises:
        ValueError: the name of a shard is no UTF-8, so that no table can hold it.
    """
    listed = [sources.shards(source) for source in data.sources]
    for shard in (shard for shards in listed for shard in shards):
        if sources.as_utf8(shard.path) != shard.path:
            raise ValueError(f"{ascii(shard.path)}: the name is no UTF-8, and an index cannot hold it; rename it")
    return listed


def run_order(index: Index, data: DataConfig, seed: int, global_batch_images: int) -> Order:
    """The order of a run over `index`; weights and window size come from `data`."""
    chunks, weights = index.chunks, [source.weight for source in data.sources]
    source_C = index.shards["source"].to_numpy()[chunks.shard]
    shares = [weight / weights[0] for weight in weights]
    return Order(chunks.rows, chunks.first_sample, source_C, shares, seed, data.window_chunks, global_batch_images)


def _listing(data: DataConfig, listed: Sequence[Sequence[Shard]], version: int) -> str:
    parts = [
        {
            "columns": source.columns.model_dump(mode="json"),
            "shards": [[shard.path, shard.format, shard.bytes, shard.etag] for shard in shards],
        }
        for source, shards in zip(data.sources, listed, strict=True)
    ]
    return _sha256({"version": version, "chunk_rows": data.chunk_rows, "sources": parts})


def _fingerprint(chunk_rows: int, described: Sequence[IndexedSource], shards: pa.Table, chunks: ChunkTable) -> str:
    """Covers all that decides which row is read for a sample id; not the rejects, which `--decode` adds to."""
    table = shards.select(["source", "name", "bytes", "content"]).to_pylist()
    places = hashlib.sha256(np.stack([chunks.shard, chunks.row, chunks.rows]).astype("<i8").tobytes()).hexdigest()
    named = [(source.format, source.columns._asdict()) for source in described]
    # a selection is known by hashes of images and captions, whatever their columns are called at a site
    parts = [{"format": kind, "columns": {} if kind == "selection" else columns} for kind, columns in named]
    head = {"version": VERSION, "chunk_rows": chunk_rows, "sources": parts}
    return _sha256({**head, "shards": [list(row.values()) for row in table], "chunks": places})


def _sha256(content: dict) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _scan(chunk_rows: int, job: Job) -> Scanned:
    return sources.scan(*job, chunk_rows), sources.content(job[0])


def _in_threads(function: Callable[[Job], Scanned], jobs: list[Job]) -> Iterable[Scanned]:
    pool = ThreadPoolExecutor(THREADS)
    try:
        for number, found in enumerate(pool.map(function, jobs), start=1):
            if number % max(len(jobs) // 20, 1) == 0:
                log.info("indexed %d of %d shards", number, len(jobs))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


def _shard_table(data: DataConfig, listed: list[list[Shard]], scanned: list[Scanned]) -> pa.Table:
    rows = np.array([found.rows for found, _ in scanned], np.int64)
    shards = [shard for part in listed for shard in part]
    uris = [source.uri for source, part in zip(data.sources, listed, strict=True) for _ in part]
    columns = {
        "source": np.repeat(range(len(listed)), [len(part) for part in listed]),
        "path": [shard.path for shard in shards],
        "rows": rows,
        "first_sample": np.cumsum(rows) - rows,
        "bytes": [shard.bytes for shard in shards],
        "etag": [shard.etag for shard in shards],
        "name": [sources.name_below(uri, shard.path, shard.format) for uri, shard in zip(uris, shards, strict=True)],
        "content": [content for _, content in scanned],
        "unused_images": [found.unused_images for found, _ in scanned],
        "unused_image": [found.unused_image for found, _ in scanned],
    }
    return pa.table(columns, schema=_SHARDS)


def _chunk_table(scans: list[Scan], first_sample_S: NDArray[np.int64]) -> ChunkTable:
    shard = np.repeat(np.arange(len(scans), dtype=np.int32), [len(found.chunk_C4) for found in scans])
    row, rows, start, stop = np.concatenate([found.chunk_C4 for found in scans]).T.copy()
    return ChunkTable(shard, row, rows.astype(np.int32), first_sample_S[shard] + row, start, stop)


def _check_rows(data: DataConfig, rows: list[int]) -> None:
    for source, count in zip(data.sources, rows, strict=True):
        if count == 0:
            raise ValueError(f"{source.uri}: there are no rows in it; check the files")


def empty_shards(index: Index, source: int) -> str:
    """A sentence that names the shards of a source in which no row was found; empty where each has some."""
    table = index.shards
    is_empty = (table["source"].to_numpy() == source) & (table["rows"].to_numpy() == 0)
    names = table["path"].filter(pa.array(is_empty)).to_pylist()
    shown = errors.listed(name.rpartition("/")[2] for name in names)
    return f"{len(names):,} shards hold no rows: {shown}" if names else ""


def unused_images(index: Index, source: int) -> str:
    """A sentence about images in the tars of a source that are in no row; empty where there are none.

    It is also empty for an index that was written before they were counted.
    """
    rows = [row for row in index.shards.to_pylist() if row["source"] == source and row.get("unused_images")]
    if not rows:
        return ""
    name, tar = rows[0]["unused_image"], rows[0]["path"].rpartition("/")[2]
    return (
        f"{sum(row['unused_images'] for row in rows):,} images in tars are left out, e.g. {name} of {tar}: a key ends "
        "at its first dot, and its row has one image; if they are no masks, give each of them a key of its own"
    )


def bad_rows_and_damages(index: Index) -> tuple[pa.Table, pa.Table]:
    """The rejects that are rows, and those that tell how a damaged or cut tar ends: of these no row is bad."""
    rows = dict(zip(index.shards["path"].to_pylist(), index.shards["rows"].to_pylist(), strict=True))
    ends = np.array([rows[path] for path in index.rejects["path"].to_pylist()], np.int64)
    is_row = index.rejects["row"].to_numpy() < ends
    return index.rejects.filter(pa.array(is_row)), index.rejects.filter(pa.array(~is_row))


def unread_bytes(index: Index) -> dict[str, int]:
    """Bytes after the last row of each tar that is damaged or cut, by the shard's URI; 0 where the cut is the end."""
    shards = {row["path"]: (number, row["bytes"]) for number, row in enumerate(index.shards.to_pylist())}
    found = {}
    for reject in bad_rows_and_damages(index)[1].to_pylist():
        number, size = shards[reject["path"]]
        stops = index.chunks.stop[index.chunks.shard == number]
        found[reject["path"]] = max(size - int(stops.max(initial=0)), 0)
    return found
