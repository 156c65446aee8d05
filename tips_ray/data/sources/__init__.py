"""Data sets as they are on disk: WebDataset tars, Parquet files, a folder of images with a CSV."""

import os
from collections.abc import Sequence
from types import ModuleType

from tips_ray import storage
from tips_ray.config import ColumnsConfig, SourceConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources import folder, parquet, webdataset
from tips_ray.data.sources.columns import Columns
from tips_ray.data.sources.shard import Chunk, NoRowsError, Reject, Scan, Shard
from tips_ray.storage import StoredFile

__all__ = ["Chunk", "Columns", "Reject", "Scan", "Shard", "columns_of", "read_chunk", "scan", "shards"]

_FORMATS: dict[str, ModuleType] = {"webdataset": webdataset, "parquet": parquet, "folder": folder}
"""Formats in the order in which `auto` tries them: img2dataset leaves a table of metadata beside each tar."""
_PACKED = (".tar.gz", ".tgz", ".tar.zst", ".tar.bz2", ".tar.xz", ".csv.gz")


def shards(source: SourceConfig) -> list[Shard]:
    """The shards of a source, sorted by path; only listings are read.

    Raises:
        StorageError: nothing is there, or the store does not answer.
        ValueError: no file is of the format, or a folder has no table of captions or several.
    """
    files = storage.list_files(source.uri)
    name = _format_of(source, files)
    chosen = [file for file in files if file.uri.lower().endswith(_FORMATS[name].SUFFIXES)]
    if name == "folder":
        return [folder.folder_shard(_table(source, chosen))]
    return [Shard(file.uri, name, file.bytes, file.etag) for file in chosen]


def columns_of(shards: Sequence[Shard], wanted: ColumnsConfig) -> Columns:
    """`wanted`, completed from the first of a source's shards that has rows.

    Raises:
        NoRowsError: no shard has rows.
        ValueError: a named column is absent, or none of the common names is there; it lists the columns there are.
    """
    empty = []
    for shard in shards:
        try:
            return _FORMATS[shard.format].columns_of(shard, wanted)
        except NoRowsError as error:
            empty.append(error)
    raise empty[0]


def scan(shard: Shard, columns: Columns, chunk_rows: int) -> Scan:
    """Chunks and bad rows of a shard, without its images where seeking is cheap: 10,000 rows of a local tar in 0.3 s.

    Args:
        shard: one of `shards`.
        columns: from `columns_of` the shards of the source.
        chunk_rows: rows per chunk; the last one of a shard (Parquet: of a row group) may have fewer.

    Raises:
        ValueError: the shard lacks one of the columns.
        StorageError: it cannot be read.
    """
    return _FORMATS[shard.format].scan(shard, columns, chunk_rows)


def read_chunk(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Exactly `chunk.rows` rows; a bad one has `error` and no image.

    Raises:
        StorageError: the storage fails after three tries, or the shard changed since it was indexed.
    """
    return _FORMATS[shard.format].read_chunk(shard, chunk, columns)


def _format_of(source: SourceConfig, files: list[StoredFile]) -> str:
    names = [file.uri.lower() for file in files]
    for name, module in _FORMATS.items():
        if source.format in ("auto", name) and any(map(lambda file: file.endswith(module.SUFFIXES), names)):
            return name
    packed = next((file.uri for file in files if file.uri.lower().endswith(_PACKED)), None)
    if packed:
        raise ValueError(f"{packed}: compressed files cannot be read in parts; decompress them")
    images = sum(name.endswith(folder.IMAGE_SUFFIXES) for name in names)
    if images:
        raise ValueError(
            f"{source.uri}: there are {images} images and no table of their captions; put a CSV beside them, or above "
            "their folders and give that folder: a line `image,caption`, then one line per caption"
        )
    raise ValueError(
        f"{source.uri}: among {len(files)} files ({os.path.basename(files[0].uri)}, ...) there is none of the format "
        f"{source.format!r}: *.tar, *.parquet, or images beside a *.csv or *.tsv with their captions"
    )


def _table(source: SourceConfig, tables: list[StoredFile]) -> StoredFile:
    """The one table right in the folder; `source.uri` may also name it."""
    root = storage.resolved(source.uri)
    found = [file for file in tables if file.uri == root or os.path.dirname(file.uri) == root]
    if len(found) != 1:
        names = ", ".join(os.path.basename(file.uri) for file in found) or "none"
        raise ValueError(
            f"{source.uri}: a folder of images needs one CSV or TSV with their captions right in it, there is {names}; "
            "uri may name the table itself"
        )
    return found[0]
