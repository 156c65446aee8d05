"""Images beside files of their name, without a table: KEY.jpg, KEY.txt, KEY.json (img2dataset --output_format files).

Each folder with such images is a shard, each image a row, in order of names. The other files of a key are columns,
and so are the fields of its JSON, as in a tar.
"""

import hashlib
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

from tips_ray import storage
from tips_ray.config import ColumnsConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources.columns import Columns, alternatives, check
from tips_ray.data.sources.image_files import IMAGE_SUFFIXES, broken_link, composed_form, thumbnails
from tips_ray.data.sources.members import JSON_SAMPLES, Reader, json_cells, member_columns, row_content
from tips_ray.data.sources.shard import Chunk, Content, NoRowsError, Reject, Scan, Shard, source_rows
from tips_ray.data.sources.texts import SYNTHETIC, WEB
from tips_ray.storage import NotFoundError, StorageError, StoredFile

IMAGE_MEMBERS = ("jpg", "jpeg", "png", "webp", "gif", "bmp")
"""Suffixes of images, each a column; .jfif, a JPEG too, stands in `jpg`."""
BESIDE = (*WEB, *SYNTHETIC, "json")
"""Suffixes of files that hold captions."""
READERS = 16
"""Rows of a chunk that are read at the same time."""


class _Row(NamedTuple):
    key: str
    files: dict[str, StoredFile]
    """The image and what lies beside it, by suffix in lower case."""


def pair_shards(files: Iterable[StoredFile], root: str) -> list[Shard]:
    """A shard for each folder in which an image has captions beside it."""
    files = list(files)
    small = thumbnails((file for file in files if is_image(file)), root)
    folders: dict[str, list[StoredFile]] = defaultdict(list)
    for file in files:
        if file.uri not in small:
            folders[os.path.dirname(file.uri)].append(file)
    rows = {folder: _rows(below) for folder, below in folders.items()}
    with_captions = [folder for folder, found in rows.items() if any(row.files.keys() & set(BESIDE) for row in found)]
    return [_shard(folder, rows[folder]) for folder in sorted(with_captions)]


def files_of(shard: Shard) -> list[StoredFile]:
    """All files of a shard."""
    return [file for row in _rows_of(shard) for file in row.files.values()]


def columns_of(shard: Shard, wanted: ColumnsConfig) -> Columns:
    """Resolved columns: suffixes and JSON fields alike. The image is any image file, the key is its name."""
    rows = _rows_of(shard)
    if not rows:
        raise NoRowsError(f"{shard.path}: there are no images in it; leave it out")
    return member_columns(wanted, _names(rows), shard.path, IMAGE_MEMBERS, _cells(rows))


def scan(shard: Shard, columns: Columns, chunk_rows: int) -> Scan:
    """The images of the folder by its listing; files are not read, but for the JSON of the first rows."""
    rows = _rows_of(shard)
    check(columns, _names(rows), shard.path)
    faults = [_fault(row, columns) for row in rows]
    rejects = [Reject(number, rows[number].key, fault) for number, fault in enumerate(faults) if fault]
    starts = range(0, len(rows), chunk_rows)
    stops = [min(start + chunk_rows, len(rows)) for start in starts]
    return Scan.of(
        [Chunk(start, stop - start, start, stop) for start, stop in zip(starts, stops, strict=True)], rejects
    )


def read_chunk(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk, several at a time. The listing is read once per process."""
    rows = _rows_of(shard)[chunk.start : chunk.stop]
    with ThreadPoolExecutor(READERS) as pool:
        return source_rows(chunk, list(pool.map(partial(_content, columns=columns), rows)))


def read_captions(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk without their images, which are not read."""
    rows = _rows_of(shard)[chunk.start : chunk.stop]
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(partial(_content, columns=columns, image=""), rows)
        return source_rows(chunk, list(contents))


def read_fields(shard: Shard, chunk: Chunk, columns: Columns, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Fields of the JSON beside each image of a chunk."""
    rows = _rows_of(shard)[chunk.start : chunk.stop]
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(json_cells, map(_readers, rows)))


def _content(row: _Row, columns: Columns, image: str | None = None) -> Content:
    """A row; `image` replaces the column of the image: empty where it is not read."""
    wanted = columns if image is None else columns._replace(image=image)
    try:
        return row_content(row.key, _readers(row), wanted, _fault(row, columns))
    except NotFoundError as error:
        return Content(row.key, b"", ("", []), f"a file is gone: {error}")


def _readers(row: _Row) -> Mapping[str, Reader]:
    return {name: partial(storage.read_bytes, file.uri) for name, file in row.files.items()}


def _fault(row: _Row, columns: Columns) -> str:
    image = next((row.files[name] for name in alternatives(columns.image) if name in row.files), None)
    if image is None:
        return f"no image: none of {columns.image} is among {', '.join(row.files)}"
    broken = [file.uri for file in row.files.values() if file.is_broken_link]
    return broken_link(broken[0]) if broken else "" if image.bytes else "the image has no bytes"


def _rows(files: Iterable[StoredFile]) -> list[_Row]:
    """An image of one folder with all files of its name, or of its name without suffix, that are no images."""
    images, beside = [], defaultdict(dict)
    for file in sorted(files):
        stem, suffix = os.path.splitext(os.path.basename(file.uri))
        if is_image(file):
            images.append((file, stem, suffix))
        elif suffix:
            beside[composed_form(stem)][suffix[1:].lower()] = file
    rows = []
    for file, stem, suffix in images:
        name = os.path.basename(file.uri)
        others = {**beside[composed_form(name)], **beside[composed_form(stem)]}
        column = suffix[1:].lower()
        rows.append(_Row(name, {"jpg" if column == "jfif" else column: file, **others}))
    return rows


def _shard(folder: str, rows: list[_Row]) -> Shard:
    files = [file for row in rows for file in row.files.values()]
    digest = hashlib.sha256(repr([(file.uri, file.bytes, file.etag) for file in files]).encode()).hexdigest()
    return Shard(folder, "pairs", sum(file.bytes for file in files), digest[:32])


@lru_cache(maxsize=8)
def _rows_of(shard: Shard) -> list[_Row]:
    """
    Raises:
        StorageError: the folder is not as it was indexed.
    """
    rows = _rows(file for file in storage.list_files(shard.path) if os.path.dirname(file.uri) == shard.path)
    if _shard(shard.path, rows) != shard:
        raise StorageError(f"{shard.path}: the folder is not as it was indexed; run tips-ray index again")
    return rows


def _names(rows: list[_Row]) -> set[str]:
    """Columns of a folder: all suffixes, and the JSON fields of its first rows."""
    return {"__key__"}.union(*(row.files for row in rows), *_cells(rows))


def _cells(rows: list[_Row]) -> list[dict[str, Any]]:
    return [json_cells(_readers(row)) for row in rows[:JSON_SAMPLES]]


def is_image(file: StoredFile) -> bool:
    """Whether a file has the name of an image."""
    return file.uri.lower().endswith(IMAGE_SUFFIXES)
