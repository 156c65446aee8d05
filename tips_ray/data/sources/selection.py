"""Rows chosen from other shards, without copies of their images: `NAME.rows` says which, `NAME.places` where they lie.

Both are Parquet files with the same row groups. `NAME.rows` is the same at every site: keys, and hashes of images and
captions, in the order of training. `NAME.places` belongs to one site; a row without a place there is a bad row. So a
site that has lost some images trains on the others in the same order.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import pyarrow as pa

from tips_ray import storage
from tips_ray.config import ColumnsConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources import folder, pairs, parquet, webdataset
from tips_ray.data.sources.columns import Columns
from tips_ray.data.sources.shard import Chunk, Content, NoRowsError, Scan, Shard, source_rows
from tips_ray.storage import NotFoundError, StorageError

SUFFIXES = (".rows",)
PLACES = ".places"
METADATA = b"tips_ray"
LOCK = "lock.json"
"""The file beside a selection's files that says what it was made from."""
GROUP_ROWS = 1024
"""Rows of a row group, which is read whole for every chunk: about 100 KiB of hashes."""
CAPTION_DIGEST_BYTES = 16
ROWS = pa.schema(
    [("key", pa.string()), ("shard", pa.string()), ("row", pa.int64()), ("image_sha256", pa.binary(32))]
    + [("captions_sha256", pa.binary(CAPTION_DIGEST_BYTES))]
)
"""`shard` and `row`: name below the source, and number in it, where the row was chosen."""
PLACED = pa.schema(
    [("path", pa.string()), ("format", pa.string()), ("bytes", pa.int64()), ("etag", pa.string()), ("row", pa.int64())]
    + [(f"chunk_{name}", pa.int64()) for name in ("row", "rows", "start", "stop")]
)
"""The shard of a row, its number there, and the chunk of the shard that is read for it; all null without a place."""
FORMATS: dict[str, ModuleType] = {"webdataset": webdataset, "parquet": parquet, "folder": folder, "pairs": pairs}
"""Formats of the shards that rows are chosen from, in the order in which `auto` tries them."""
ABSENT = "the row is not at this site: tips-ray data verify tells what is missing"
IMAGE_CHANGED = "the image has changed since it was chosen"
CAPTION_CHANGED = "a caption has changed since it was chosen"


def columns_of(shard: Shard, wanted: ColumnsConfig) -> Columns:
    """The columns of the shards that rows are chosen from.

    Raises:
        ValueError: the config names others, whose captions would not be the chosen ones.
    """
    if not parquet.metadata_of(shard).num_rows:
        raise NoRowsError(f"{shard.path}: no row was chosen; leave the file out")
    held = json.loads((parquet.metadata_of(places_shard(shard.path)).metadata or {})[METADATA])
    named = next((name for name, value in wanted.model_dump().items() if value is not None), None)
    if named:
        raise ValueError(f"{shard.path}: leave columns.{named} out: a selection has the columns that it was made with")
    return Columns(**{**held, "synthetic_captions": tuple(held["synthetic_captions"])})


def scan(shard: Shard, columns: Columns, chunk_rows: int) -> Scan:
    """Cut every row group into chunks; neither the rows nor their images are read."""
    return Scan.of(parquet.chunks_of(shard, chunk_rows))


def read_chunk(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk. Each chunk of another shard that holds some of them is read once.

    An image or a caption that is not the one that was chosen makes a bad row.
    """
    rows = _rows(shard, chunk, columns, "read_chunk")
    return source_rows(chunk, [_content(one, row, _fault(one, row)) for one, row in rows])


def faults(shard: Shard, chunk: Chunk, columns: Columns) -> list[str]:
    """Why each row of a chunk cannot be used, empty where it can; where a shard is gone, its rows are absent.

    Raises:
        StorageError: the storage fails, or a shard is not the one that was read when rows were chosen.
    """
    return [_fault(one, row) for one, row in _rows(shard, chunk, columns, "read_chunk", may_be_gone=True)]


def read_captions(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk without their images, as the format of the other shards reads them."""
    rows = _rows(shard, chunk, columns, "read_captions")
    return source_rows(chunk, [_content(one, row, "" if row else ABSENT) for one, row in rows])


def read_fields(shard: Shard, chunk: Chunk, columns: Columns, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Columns of the chosen rows in the shards that hold them; empty without a place."""
    rows = _rows(shard, chunk, columns, "read_fields", names)
    return [{} if row is None else row for _, row in rows]


def captions_digest(row: SourceRow) -> bytes:
    """Hash of the captions of a row."""
    captions = json.dumps([row["web_caption"], row["synthetic_captions"]]).encode()
    return hashlib.sha256(captions).digest()[:CAPTION_DIGEST_BYTES]


def lock_uri(rows_uri: str) -> str:
    """The lock of the selection that a file of rows belongs to."""
    return f"{os.path.dirname(rows_uri)}/{LOCK}"


@lru_cache(maxsize=256)
def places_shard(rows_uri: str) -> Shard:
    """The file of places beside a file of rows, which is never written twice."""
    file = storage.stat(rows_uri.removesuffix(SUFFIXES[0]) + PLACES)
    return Shard(file.uri, "parquet", file.bytes, file.etag)


def _rows(
    shard: Shard, chunk: Chunk, columns: Columns, reader: str, *arguments: Any, may_be_gone: bool = False
) -> list[tuple[dict[str, Any], Any]]:
    """What was chosen, and the row that is there; None without a place.

    Raises:
        StorageError: a file is damaged, or not the one that was indexed.
    """
    try:
        chosen = parquet.read_cells(shard, chunk, ROWS.names)
        places = parquet.read_cells(places_shard(shard.path), chunk, PLACED.names)
    except parquet.DamagedError as error:
        raise StorageError(f"{shard.path} or its places are damaged ({error}); copy both files again") from None
    if len(chosen) != chunk.rows or len(places) != chunk.rows:
        raise StorageError(f"{shard.path}: the file is not the one that was indexed; run tips-ray index again")
    there = _read_places(places, columns, reader, *arguments, may_be_gone=may_be_gone)
    return [(one, there.get((place["path"], place["row"]))) for one, place in zip(chosen, places, strict=True)]


def _read_places(
    places: Sequence[Mapping[str, Any]], columns: Columns, reader: str, *arguments: Any, may_be_gone: bool
) -> dict[tuple[str, int], Any]:
    """Rows by shard and number, from every chunk of other shards that holds one of them.

    With `may_be_gone` rows of a shard that is not there are left out.
    """
    shard_names = ("path", "format", "bytes", "etag")
    chunk_names = [f"chunk_{name}" for name in Chunk._fields[:4]]
    held = [place for place in places if place["path"] is not None]
    wanted = {(*(place[name] for name in shard_names), *(place[name] for name in chunk_names)): None for place in held}
    found = {}
    for path, kind, size, etag, *bounds in wanted:
        chunk = Chunk(*bounds)
        try:
            rows = getattr(FORMATS[kind], reader)(Shard(path, kind, size, etag), chunk, columns, *arguments)
        except NotFoundError:
            if not may_be_gone:
                raise
            continue
        found |= {(path, chunk.row + number): row for number, row in enumerate(rows)}
    return found


def _fault(chosen: Mapping[str, Any], row: SourceRow | None) -> str:
    """Why the row that is there is not the one that was chosen; empty if it is."""
    if row is None:
        return ABSENT
    if row["error"]:
        return row["error"]
    if hashlib.sha256(row["image"]).digest() != chosen["image_sha256"]:
        return IMAGE_CHANGED
    return "" if captions_digest(row) == chosen["captions_sha256"] else CAPTION_CHANGED


def _content(chosen: Mapping[str, Any], row: SourceRow | None, fault: str) -> Content:
    if row is None or fault:
        return Content(chosen["key"], b"", ("", []), fault)
    return Content(chosen["key"], row["image"], (row["web_caption"], row["synthetic_captions"]), row["error"])
