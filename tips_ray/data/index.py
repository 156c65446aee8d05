"""The index of a data set: shards, chunks and their byte ranges, sample ids, bad rows (docs/formats.md)."""

import hashlib
import json
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tips_ray import storage
from tips_ray.config import DataConfig
from tips_ray.data import sources
from tips_ray.data.columns import SourceRow
from tips_ray.data.order import Order
from tips_ray.data.sources import Chunk, Columns, Scan, Shard
from tips_ray.storage import StorageError

VERSION = 1
THREADS = 16
log = logging.getLogger(__name__)

_SHARDS = pa.schema(
    [("source", pa.int16()), ("path", pa.string()), ("rows", pa.int64()), ("first_sample", pa.int64())]
    + [("bytes", pa.int64()), ("etag", pa.string())]
)
REJECTS = pa.schema([("path", pa.string()), ("row", pa.int64()), ("key", pa.string()), ("reason", pa.string())])

Mapper = Callable[[Callable[[tuple[Shard, Columns]], Scan], list[tuple[Shard, Columns]]], Iterable[Scan]]
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
    chunk_rows: int
    sources: tuple[IndexedSource, ...]
    shards: pa.Table
    chunks: ChunkTable
    rejects: pa.Table

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
        number = int(np.searchsorted(self.chunks.first_sample, sample_id, side="right")) - 1
        chunk = self.chunk(number)
        return self.shard(int(self.chunks.shard[number]))[0], chunk.row + sample_id - chunk.first_sample

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


def index_of(data: DataConfig, folder: str, mapper: Mapper | None = None) -> Index:
    """The index of `data`: read where one is, else built and written.

    Args:
        data: sources and chunk size.
        folder: URI below which indexes are kept by fingerprint, unless `data.index` says where.
        mapper: see `build_index`.

    Raises:
        ValueError: the data cannot be read, or differ from the index at `data.index`.
    """
    uri = data.index or storage.join(folder, fingerprint(data))
    if not storage.exists(storage.join(uri, "index.json")):
        write_index(index := build_index(data, mapper), uri)
        return index
    index = read_index(uri)
    check_unchanged(index, data)
    return index


def index_uri(data: DataConfig, index: Index, folder: str) -> str:
    """Where `index_of` keeps `index`."""
    return storage.resolved(data.index or storage.join(folder, index.fingerprint))


def build_index(data: DataConfig, mapper: Mapper | None = None) -> Index:
    """Scan every shard; a pure function of the data, whatever the mapper.

    Raises:
        ValueError: a source has no rows, or a shard lacks a column; StorageError, a ValueError: it cannot be read.
    """
    listed = _listed(data)
    columns = [sources.columns_of(shards, source.columns) for shards, source in zip(listed, data.sources, strict=True)]
    jobs = [(shard, columns[number]) for number, shards in enumerate(listed) for shard in shards]
    scans = list((mapper or _in_threads)(partial(_scan, data.chunk_rows), jobs))
    shards = _shard_table(listed, scans)
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
    mark = _fingerprint(data, listed)
    return Index(mark, data.chunk_rows, described, shards, chunks, pa.Table.from_pylist(rejects, REJECTS))


def fingerprint(data: DataConfig) -> str:
    """Name of the index of `data`, from listings alone: sha256 in hexadecimal digits.

    It covers (path, bytes, etag) of every shard, formats, columns and chunk size, and so the rows too. Weights are not
    in it: they change the order, not the index.
    """
    return _fingerprint(data, _listed(data))


def check_unchanged(index: Index, data: DataConfig) -> None:
    """Check that the data are still those of the index.

    Raises:
        ValueError: a shard changed, vanished or appeared (the first one is named), or chunks would have another size.
    """
    if index.chunk_rows != data.chunk_rows:
        raise ValueError(f"data.chunk_rows ({data.chunk_rows}) must be that of the index ({index.chunk_rows})")
    listed = _listed(data)
    now = {(number, shard.path): shard for number, shards in enumerate(listed) for shard in shards}
    then = {(row["source"], row["path"]): row for row in index.shards.to_pylist()}
    for place in sorted(now.keys() | then.keys()):
        old, new = then.get(place), now.get(place)
        if old is None or new is None or (old["bytes"], old["etag"]) != (new.bytes, new.etag):
            change = "appeared" if old is None else "vanished" if new is None else "changed"
            raise ValueError(
                f"{place[1]} {change} since the data were indexed: a run keeps its data; restore them, or start a run "
                "of another name with a new index"
            )
    if index.fingerprint != _fingerprint(data, listed):
        raise ValueError("data.sources have other formats or columns than the index; make a new index")


def run_order(index: Index, data: DataConfig, seed: int, global_batch_images: int) -> Order:
    """The order of a run over `index`; weights and window size come from `data`."""
    chunks, weights = index.chunks, [source.weight for source in data.sources]
    source_C = index.shards["source"].to_numpy()[chunks.shard]
    shares = [weight / weights[0] for weight in weights]
    return Order(chunks.rows, chunks.first_sample, source_C, shares, seed, data.window_chunks, global_batch_images)


def write_index(index: Index, uri: str) -> None:
    """Write the folder; `index.json` is written last, and without it there is no index."""
    chunks = pa.table(index.chunks._asdict())
    for name, table in (("shards", index.shards), ("chunks", chunks), ("rejects", index.rejects)):
        buffer = pa.BufferOutputStream()
        pq.write_table(table, buffer, compression="zstd")
        storage.write_bytes(storage.join(uri, f"{name}.parquet"), buffer.getvalue().to_pybytes())
    described = [{**asdict(source), "columns": source.columns._asdict()} for source in index.sources]
    head = {"version": VERSION, "fingerprint": index.fingerprint, "chunk_rows": index.chunk_rows, "rows": index.rows}
    head |= {"sources": described, "created": datetime.now(UTC).isoformat(timespec="seconds")}
    storage.write_text(storage.join(uri, "index.json"), json.dumps(head, indent=1))


def read_index(uri: str) -> Index:
    """The index in a folder.

    Raises:
        NotFoundError: there is none.
        ValueError: it is of another version, or damaged.
    """
    try:
        head = json.loads(storage.read_text(storage.join(uri, "index.json")))
        if head["version"] != VERSION:
            raise StorageError(f"{uri} has index version {head['version']}, this program reads version {VERSION}")
        shards, chunks, rejects = (_read_table(uri, name) for name in ("shards", "chunks", "rejects"))
    except (json.JSONDecodeError, KeyError, TypeError, pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{uri} is no whole index ({reason}); delete it, and it is made again") from None
    described = tuple(_read_source(source) for source in head["sources"])
    columns = ChunkTable(*(chunks[name].to_numpy() for name in ChunkTable._fields))
    return Index(head["fingerprint"], head["chunk_rows"], described, shards, columns, rejects)


opened_index = lru_cache(maxsize=2)(read_index)
"""`read_index`, once per process: for tasks that read chunk after chunk."""


def _read_table(uri: str, name: str) -> pa.Table:
    content = storage.read_bytes(storage.join(uri, f"{name}.parquet"))
    return pq.read_table(pa.BufferReader(content))


def _read_source(source: dict[str, Any]) -> IndexedSource:
    columns = source["columns"]
    synthetic = tuple(columns["synthetic_captions"])
    return IndexedSource(**{**source, "columns": Columns(**{**columns, "synthetic_captions": synthetic})})


def _listed(data: DataConfig) -> list[list[Shard]]:
    return [sources.shards(source) for source in data.sources]


def _fingerprint(data: DataConfig, listed: list[list[Shard]]) -> str:
    parts = [
        {
            "columns": source.columns.model_dump(mode="json"),
            "shards": [[shard.path, shard.format, shard.bytes, shard.etag] for shard in shards],
        }
        for source, shards in zip(data.sources, listed, strict=True)
    ]
    text = json.dumps({"version": VERSION, "chunk_rows": data.chunk_rows, "sources": parts}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _scan(chunk_rows: int, job: tuple[Shard, Columns]) -> Scan:
    return sources.scan(*job, chunk_rows)


def _in_threads(function: Callable[[tuple[Shard, Columns]], Scan], jobs: list[tuple[Shard, Columns]]) -> Iterable[Scan]:
    pool = ThreadPoolExecutor(THREADS)
    try:
        for number, found in enumerate(pool.map(function, jobs), start=1):
            if number % max(len(jobs) // 20, 1) == 0:
                log.info("indexed %d of %d shards", number, len(jobs))
            yield found
    finally:
        pool.shutdown(cancel_futures=True)


def _shard_table(listed: list[list[Shard]], scans: list[Scan]) -> pa.Table:
    rows = np.array([found.rows for found in scans], np.int64)
    shards = [shard for part in listed for shard in part]
    columns = {
        "source": np.repeat(range(len(listed)), [len(part) for part in listed]),
        "path": [shard.path for shard in shards],
        "rows": rows,
        "first_sample": np.cumsum(rows) - rows,
        "bytes": [shard.bytes for shard in shards],
        "etag": [shard.etag for shard in shards],
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


def unread_bytes(index: Index) -> dict[str, int]:
    """Bytes after the last row of each tar that is damaged or cut, by the shard's URI; 0 where the cut is the end."""
    shards = {row["path"]: (number, row) for number, row in enumerate(index.shards.to_pylist())}
    found = {}
    for reject in index.rejects.to_pylist():
        number, shard = shards[reject["path"]]
        if reject["row"] >= shard["rows"]:  # not a row, but the damage that ends the shard
            stops = index.chunks.stop[index.chunks.shard == number]
            found[shard["path"]] = max(shard["bytes"] - int(stops.max(initial=0)), 0)
    return found
