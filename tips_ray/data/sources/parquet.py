"""Parquet files with images in a column: bytes, Hugging Face's struct {bytes, path}, or paths, s3:// keys, URLs."""

import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tips_ray import storage
from tips_ray.config import ColumnsConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources.columns import IMAGE, Columns, check, check_cells, common_name, resolve, with_fields
from tips_ray.data.sources.image_urls import NAMES, Fetched, fetch_all
from tips_ray.data.sources.parquet_types import (
    holds_bytes,
    holds_numbers,
    holds_text,
    image_column,
    refuse_pickles,
)
from tips_ray.data.sources.shard import Chunk, Content, NoRowsError, Scan, Shard, source_rows
from tips_ray.data.sources.texts import captions_of, column_of
from tips_ray.storage import StorageError

SUFFIXES = (".parquet", ".pq")
LARGE_GROUP_BYTES = 64 * 2**20
SAMPLED_ROWS = 16
"""Rows at the head of a source whose captions are looked at."""
log = logging.getLogger(__name__)


def columns_of(shard: Shard, wanted: ColumnsConfig) -> Columns:
    """Resolved columns; an image column that holds bytes is preferred to one that names files.

    Raises:
        NoRowsError: the file has no rows, or no image column because a column holds nothing but nulls.
        ValueError: a column is absent, or of a type that holds no image.
    """
    metadata = metadata_of(shard)
    schema = metadata.schema.to_arrow_schema()
    _check_names(schema, shard)
    _check_rows(shard, metadata.num_rows, schema, wanted)
    _warn_of_large_groups(shard, metadata)
    image = wanted.image or image_column(schema, shard.path, lambda name: _first_cells(shard, [name]))
    wanted = wanted.model_copy(update={"image": image})
    numbers = [field.name for field in schema if holds_numbers(field.type)]
    columns = _checked(resolve(wanted, schema.names, shard.path, numbers=numbers), schema, shard)
    cells = _first_cells(shard, columns.of_captions)
    columns = with_fields(columns, cells)
    check_cells(columns, cells, shard.path)
    return columns


def names_images(shard: Shard, columns: Columns) -> bool:
    """Whether the image's column holds texts that name files, or structs that may."""
    schema = metadata_of(shard).schema.to_arrow_schema()
    return holds_text(schema, columns.image) or pa.types.is_struct(schema.field(columns.image).type)


def scan(shard: Shard, columns: Columns, chunk_rows: int) -> Scan:
    """Cut every row group into chunks; rows are not read.

    Raises:
        ValueError: a column is absent or of a type that holds no image.
    """
    metadata = metadata_of(shard)
    if metadata.num_rows:
        _checked(columns, metadata.schema.to_arrow_schema(), shard)
    return Scan.of(chunks_of(shard, chunk_rows))


def chunks_of(shard: Shard, chunk_rows: int) -> list[Chunk]:
    """The chunks of every row group in order; `start` is the group, `stop` the first row in it."""
    metadata = metadata_of(shard)
    chunks, first = [], 0
    for group in range(metadata.num_row_groups):
        rows = metadata.row_group(group).num_rows
        for row in range(0, rows, chunk_rows):
            chunks.append(Chunk(first + row, min(chunk_rows, rows - row), group, row))
        first += rows
    return chunks


def read_chunk(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk. Its whole row group is read: pages of images are as large as groups of up to 1,024 rows.

    Raises:
        StorageError: the file cannot be read, or is not the one that was indexed.
    """
    try:
        rows = read_cells(shard, chunk, (columns.image, columns.key, *columns.of_captions))
    except DamagedError as error:
        rows = [{}] * chunk.rows
        fault = f"the row group is damaged: {error}"
    else:
        fault = ""
    if len(rows) != chunk.rows:
        raise StorageError(f"{shard.path}: the file is not the one that was indexed; run tips-ray index again")
    places = [f"{shard.path}#{chunk.row + number}" for number in range(chunk.rows)]
    images = [Fetched(b"", fault)] * chunk.rows if fault else _images([row.get(columns.image) for row in rows], shard)
    parts = zip(rows, places, images, strict=True)
    return source_rows(chunk, [_content(row, place, columns, image) for row, place, image in parts])


def read_captions(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk without their images, whose column is not read; none where the row group is damaged."""
    try:
        rows = read_cells(shard, chunk, (columns.key, *columns.of_captions))
    except DamagedError:
        return []
    places = [f"{shard.path}#{chunk.row + number}" for number in range(len(rows))]
    contents = [_content(row, place, columns, Fetched(b"not read")) for row, place in zip(rows, places, strict=True)]
    return source_rows(chunk, [content._replace(image=b"") for content in contents])


def read_fields(shard: Shard, chunk: Chunk, columns: Columns, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Cells of other columns for each row of a chunk; None: all that hold no bytes. None where a group is damaged."""
    schema = metadata_of(shard).schema.to_arrow_schema()
    if names is None:
        names = [field.name for field in schema if field.name != columns.image and not holds_bytes(field.type)]
    try:
        return read_cells(shard, chunk, names) if {*names} & {*schema.names} else [{} for _ in range(chunk.rows)]
    except DamagedError:
        return [{} for _ in range(chunk.rows)]


class DamagedError(ValueError):
    """The bytes that arrived are no Parquet."""


def _images(cells: list[Any], shard: Shard) -> list[Fetched]:
    """Bytes of every cell; those that only name a file are fetched together."""
    images = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    paths = [cell.get("path") if isinstance(cell, dict) else cell for cell in cells]
    held = [image if isinstance(image, bytes) else b"" for image in images]
    named = [str(path or "") for path, image in zip(paths, held, strict=True) if not image]
    fetched = iter(fetch_all(named, shard.path) if named else ())
    return [Fetched(image) if image else next(fetched) for image in held]


def _content(row: dict[str, Any], place: str, columns: Columns, image: Fetched) -> Content:
    texts, unread = captions_of([row], columns.web_caption, columns.synthetic_captions)
    key = row.get(columns.key)
    fault = image.fault or ("" if image.image else "the image has no bytes") or unread
    return Content(place if key is None else str(key), image.image, texts, fault)


def _first_cells(shard: Shard, names: Sequence[str]) -> list[dict[str, Any]]:
    """Columns of the first rows; nothing where they cannot be read, because reading the rows tells it then."""
    try:
        return read_cells(shard, Chunk(0, SAMPLED_ROWS, 0, 0), names) if names else []
    except DamagedError:
        return []


def read_cells(shard: Shard, chunk: Chunk, names: Iterable[str]) -> list[dict[str, Any]]:
    """The named columns of the rows of a chunk; a column that is not there is left out.

    Raises:
        DamagedError: the row group cannot be decoded.
        StorageError: the file cannot be read.
    """
    there = metadata_of(shard).schema.to_arrow_schema().names
    wanted = [name for name in dict.fromkeys(column_of(name, there) for name in names) if name]

    def read() -> list[dict[str, Any]]:
        if chunk.start >= metadata.num_row_groups:
            return []
        filesystem, path = storage.filesystem(shard.path)
        with filesystem.open_input_file(path) as source:
            file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
            batches = file.iter_batches(batch_size=chunk.rows, row_groups=[chunk.start], columns=wanted)
            return list(islice(_rows(batches, chunk.stop), chunk.rows))

    metadata = metadata_of(shard)
    return storage.attempt(shard.path, lambda: _telling_damage(read))


def _rows(batches: Iterator[pa.RecordBatch], skip: int) -> Iterator[dict[str, Any]]:
    """Rows from number `skip` on; those before are not turned into Python objects."""
    for batch in batches:
        yield from _as_objects(batch.slice(min(skip, batch.num_rows)))
        skip -= min(skip, batch.num_rows)


def _as_objects(batch: pa.RecordBatch) -> list[dict[str, Any]]:
    """Rows as dicts. Some writers put bytes that are not UTF-8 into strings; these become U+FFFD."""
    try:
        return batch.to_pylist()
    except UnicodeDecodeError:
        columns = {name: _lossy(batch.column(name)) for name in batch.schema.names}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _lossy(column: pa.Array) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        return _lossy(column.dictionary_decode())
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        cells = column.cast(pa.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "replace") for cell in cells]
    if pa.types.is_list(column.type):
        return [None if cell.values is None else _lossy(cell.values) for cell in column]
    try:
        return column.to_pylist()
    except UnicodeDecodeError as error:
        raise DamagedError(str(error)) from None


def _warn_of_large_groups(shard: Shard, metadata: pq.FileMetaData) -> None:
    group = metadata.row_group(0) if metadata.num_row_groups else None
    if group is not None and group.total_byte_size > LARGE_GROUP_BYTES:
        log.warning(
            "%s: row groups of %d rows (%d MB) are read whole for every chunk of rows; write them with about 100 rows",
            *(shard.path, group.num_rows, group.total_byte_size // 10**6),
        )


def metadata_of(shard: Shard) -> pq.FileMetaData:
    """The metadata of a file.

    Raises:
        StorageError: it is damaged, or a column would be unpickled.
    """
    try:
        return _cached_metadata(shard)
    except DamagedError as error:
        raise StorageError(
            f"{shard.path}: this is no Parquet file, or it is cut or damaged ({error}); leave it out"
        ) from None


@lru_cache(maxsize=256)
def _cached_metadata(shard: Shard) -> pq.FileMetaData:
    def read() -> pq.FileMetaData:
        filesystem, path = storage.filesystem(shard.path)
        with filesystem.open_input_file(path) as source:
            return _checked_metadata(pq.ParquetFile(source).metadata)

    metadata = storage.attempt(shard.path, lambda: _telling_damage(read))
    try:
        refuse_pickles(metadata.schema.to_arrow_schema(), shard.path)
    except ValueError as error:
        raise StorageError(str(error)) from None
    return metadata


def _checked_metadata(metadata: pq.FileMetaData) -> pq.FileMetaData:
    """The metadata, if its counts of rows agree; they have no checksum, and Arrow believes each."""
    groups = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
    if sum(groups) != metadata.num_rows or min(groups, default=0) < 0:
        raise DamagedError(f"its row groups have {sum(groups):,} rows, and the file has {metadata.num_rows:,}")
    return metadata


def _telling_damage(read):
    """Arrow says OSError both for a failing disk (with a number) and for bytes that make no sense (without)."""
    try:
        return read()
    except pa.ArrowException as error:
        raise DamagedError(_one_line(error)) from None
    except UnicodeDecodeError as error:
        raise DamagedError(f"the name of a column is no text: {error}") from None
    except OSError as error:
        if error.errno is not None or "AWS Error" in str(error):
            raise
        raise DamagedError(_one_line(error)) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def _check_rows(shard: Shard, rows: int, schema: pa.Schema, wanted: ColumnsConfig) -> None:
    """Refuse to judge the columns of a file without rows, or without an image in any row: other files may have them."""
    if rows == 0:
        raise NoRowsError(f"{shard.path}: there are no rows in it; write the file again or leave it out")
    empty = [name for name in schema.names if pa.types.is_null(schema.field(name).type)]
    image = wanted.image or common_name((*IMAGE, *NAMES), schema.names)
    if image in empty and not any(holds_bytes(field.type) for field in schema):
        raise NoRowsError(f"{shard.path}: the column {image!r} has no image in any row; write the file again")


def _check_names(schema: pa.Schema, shard: Shard) -> None:
    twice = sorted({name for name in schema.names if schema.names.count(name) > 1})
    if twice:
        raise ValueError(f"{shard.path}: two columns have the name {twice[0]}; write the file again with one of each")


def _checked(columns: Columns, schema: pa.Schema, shard: Shard) -> Columns:
    check(columns, schema.names, shard.path)
    found = schema.field(columns.image).type
    if not (pa.types.is_null(found) or holds_bytes(found) or holds_text(schema, columns.image)):
        raise ValueError(
            f"{shard.path}: columns.image is {columns.image!r}, a column of type {found}; it must hold bytes, a "
            "struct {bytes, path}, or texts that name files (paths, s3:// keys, URLs)"
        )
    return columns
