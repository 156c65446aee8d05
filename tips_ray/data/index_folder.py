"""The folder of an index: written, read and found again; data that changed are refused, moved ones are not."""

import json
import logging
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from tips_ray import storage
from tips_ray.config import DataConfig
from tips_ray.data import sources
from tips_ray.data.index import (
    VERSION,
    ChunkTable,
    Index,
    IndexedSource,
    Mapper,
    build_index,
    listed_shards,
    listing_mark,
)
from tips_ray.data.sources import Columns
from tips_ray.data.sources.parquet_types import refuse_pickles
from tips_ray.data.tables import read_table, write_table
from tips_ray.storage import NotFoundError, StorageError

HEAD = "index.json"
CURE = "a run keeps its data; restore them, or start a run of another name with a new index"
log = logging.getLogger(__name__)


def index_of(data: DataConfig, folder: str, mapper: Mapper | None = None) -> Index:
    """The index of `data`: read where one is, else built and written.

    Args:
        data: sources and chunk size. If an index at `data.index` is of the same data at another place, it stays as it
            is, and the index of this place is kept below `folder`.
        folder: URI below which indexes are kept by listing, unless `data.index` says where.
        mapper: see `build_index`.

    Raises:
        ValueError: the data cannot be read, or are not those of the index at `data.index`.
    """
    mark = listing_mark(data)
    own = storage.join(folder, mark)
    named = _read_if_there(data.index) if data.index else None
    if named is None or not named.listing:
        if named and named.fingerprint != listing_mark(data, version=1):
            raise ValueError(f"the data are not those of the index at {data.index}, of an earlier version: {CURE}")
        found = None if data.index else _read_if_there(own)
        return found or _written(data, folder, data.index or own, mapper)
    if named.listing == mark:
        return named
    check_places(named, data)
    found = _read_if_there(own) or _written(data, folder, own, mapper)
    if found.fingerprint != named.fingerprint:
        raise _changed(named, found)
    return found


def write_index(index: Index, uri: str) -> Index:
    """Write the folder; `index.json` is written last, and without it there is none. Gives the index its place."""
    chunks = pa.table(index.chunks._asdict())
    storage.mark_output(uri)
    for name, table in (("shards", index.shards), ("chunks", chunks), ("rejects", index.rejects)):
        write_table(storage.join(uri, f"{name}.parquet"), table)
    described = [{**asdict(source), "columns": source.columns._asdict()} for source in index.sources]
    head = {"version": VERSION, "fingerprint": index.fingerprint, "listing": index.listing, "earlier": index.earlier}
    head |= {"chunk_rows": index.chunk_rows, "rows": index.rows, "sources": described}
    head |= {"created": datetime.now(UTC).isoformat(timespec="seconds")}
    storage.write_text(storage.join(uri, HEAD), json.dumps(head, indent=1))
    return replace(index, uri=storage.resolved(uri))


def read_index(uri: str) -> Index:
    """The index in a folder. One of version 1 has neither `listing` nor contents.

    Raises:
        NotFoundError: there is none.
        ValueError: it is of a later version, or damaged.
    """
    try:
        head = json.loads(storage.read_text(storage.join(uri, HEAD)))
        if head["version"] not in (1, VERSION):
            raise StorageError(f"{uri} has index version {head['version']}, this program reads up to version {VERSION}")
        shards, chunks, rejects = (_read_table(uri, name) for name in ("shards", "chunks", "rejects"))
        described = tuple(_read_source(source) for source in head["sources"])
        columns = ChunkTable(*(chunks[name].to_numpy() for name in ChunkTable._fields))
        marks = (head["listing"], head["earlier"]) if head["version"] > 1 else ("", "")
    except (json.JSONDecodeError, KeyError, TypeError, pa.ArrowException, OSError) as error:
        reason = " ".join(str(error).split())
        raise StorageError(f"{uri} is no whole index ({reason}); delete it, and it is made again") from None
    place = storage.resolved(uri)
    return Index(head["fingerprint"], head["chunk_rows"], described, shards, columns, rejects, *marks, place)


opened_index = lru_cache(maxsize=2)(read_index)
"""`read_index`, once per process: for tasks that read chunk after chunk."""


def check_places(index: Index, data: DataConfig) -> None:
    """Check by listings that the data can be those of the index, at the same place or at another one.

    Raises:
        ValueError: a shard has another size, vanished or appeared (the first one is named), or chunks would have
            another size.
    """
    if index.chunk_rows != data.chunk_rows:
        raise ValueError(f"data.chunk_rows ({data.chunk_rows}) must be that of the index ({index.chunk_rows})")
    now = {
        (number, sources.name_below(source.uri, shard.path, shard.format)): shard
        for number, (source, shards) in enumerate(zip(data.sources, listed_shards(data), strict=True))
        for shard in shards
    }
    then = {(row["source"], row["name"]): row for row in index.shards.to_pylist()}
    for place in sorted(now.keys() | then.keys()):
        old, new = then.get(place), now.get(place)
        if old is None or new is None or old["bytes"] != new.bytes:
            change = "appeared" if old is None else "vanished" if new is None else "changed"
            path = new.path if new else then[place]["path"]
            raise ValueError(f"{path} {change} since the data were indexed: {CURE}")


def check_apart(what: str, folder: str, index: Index) -> None:
    """Check that a folder that is about to be written holds no data of the index.

    Args:
        what: names the folder in the message.

    Raises:
        ValueError: files of a source lie in it, and what is written would be read as data.
    """
    for number, source in enumerate(index.sources):
        path = storage.mark_hides(folder, source.uri, (shard.path for shard in index.shards_of(number)))
        if path:
            raise ValueError(
                f"{what} ({folder}) holds data of {source.uri}, such as {path}, and what is written there would be "
                "read as data; choose a folder without data, which may lie below that one"
            )


def _changed(old: Index, new: Index) -> ValueError:
    """The sentence about data with the names and sizes of an index, but other contents, formats or columns."""
    for row, other in zip(old.shards.to_pylist(), new.shards.to_pylist(), strict=False):
        if row["content"] != other["content"]:
            return ValueError(f"{other['path']} changed since the data were indexed: {CURE}")
    return ValueError("data.sources have other formats or columns than the index; make a new index")


def _written(data: DataConfig, folder: str, uri: str, mapper: Mapper | None) -> Index:
    """Build the index and write it at `uri`, where one of version 1 may be, which was below `folder` by fingerprint."""
    index = build_index(data, mapper)
    check_apart("data.index" if uri == data.index else "the folder of the index", uri, index)
    before = _read_if_there(uri) or _read_if_there(storage.join(folder, index.earlier))
    if before and not before.listing and not _same_rows(before, index):
        log.warning(
            "%s: an earlier version read %d rows of these data, this one reads %d: runs that it began cannot go on",
            before.uri,
            before.rows,
            index.rows,
        )
        index = replace(index, earlier="")
    return write_index(index, uri)


def _same_rows(before: Index, index: Index) -> bool:
    """Whether an index of version 1 is of these data, and numbers the same rows."""
    names = ChunkTable._fields[:4]
    is_same = all(np.array_equal(getattr(before.chunks, name), getattr(index.chunks, name)) for name in names)
    return is_same and before.fingerprint == index.earlier


def _read_if_there(uri: str) -> Index | None:
    try:
        return read_index(uri)
    except NotFoundError:
        return None


def _read_table(uri: str, name: str) -> pa.Table:
    table = read_table(storage.join(uri, f"{name}.parquet"))
    refuse_pickles(table.schema, storage.join(uri, f"{name}.parquet"))
    return table


def _read_source(source: dict[str, Any]) -> IndexedSource:
    columns = source["columns"]
    synthetic = tuple(columns["synthetic_captions"])
    return IndexedSource(**{**source, "columns": Columns(**{**columns, "synthetic_captions": synthetic})})
