"""A folder of images beside one CSV or TSV (or `;`, `|`) with a file name and a caption per line.

The first caption of an image is its web caption, the next ones its synthetic captions, unless the table has columns
for those. Rows: the images in order of first appearance, then those that the table does not name.
"""

import csv
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial

from tips_ray import storage
from tips_ray.config import ColumnsConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources.columns import IMAGE, Columns, captions, check, resolve
from tips_ray.data.sources.shard import Chunk, Content, Reject, Scan, Shard, source_rows
from tips_ray.storage import NotFoundError, StorageError, StoredFile

SUFFIXES = (".csv", ".tsv")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
FILE = ("image", "file_name", "filename", "file", "path", "image_path", "image_name", *IMAGE[1:], "key", "id")
DELIMITERS = ",\t;|"
READERS = 8
"""Images of a chunk that are read at the same time."""


@dataclass
class _Entry:
    name: str
    key: str
    file: str = ""
    """URI of the image; empty where there is no such file."""
    fault: str = ""
    captions: list[str] = field(default_factory=list)
    synthetic: list[str] = field(default_factory=list)


def folder_shard(table: StoredFile) -> Shard:
    """The folder of `table` as one shard; its etag covers the table and every image."""
    files = [table, *_images(table.uri)]
    digest = hashlib.sha256(repr([(file.uri, file.bytes, file.etag) for file in files]).encode()).hexdigest()
    return Shard(table.uri, "folder", sum(file.bytes for file in files), digest[:32])


def columns_of(shard: Shard, wanted: ColumnsConfig) -> Columns:
    """Resolved columns of the table; `image` is the one with the file names, which are the keys unless `key` is set.

    Raises:
        ValueError: a column is absent, or the table begins with a row instead of a header.
    """
    header = table_header(shard.path)
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in header):
        raise ValueError(
            f"{shard.path}: the first line must name the columns, and it is {', '.join(header)}; put a line "
            "`image,caption` above it"
        )
    columns = resolve(wanted, header, shard.path, FILE)
    return columns._replace(key=wanted.key or columns.image)


def scan(shard: Shard, columns: Columns, chunk_rows: int) -> Scan:
    """Group the lines by image; files are listed, not read."""
    check(columns, table_header(shard.path), shard.path)
    entries = _entries(shard, columns)
    starts = range(0, len(entries), chunk_rows)
    stops = [min(start + chunk_rows, len(entries)) for start in starts]
    rejects = [Reject(row, entry.key, entry.fault) for row, entry in enumerate(entries) if entry.fault]
    chunks = [Chunk(start, stop - start, start, stop) for start, stop in zip(starts, stops, strict=True)]
    return Scan.of(chunks, rejects)


def read_chunk(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk: its images, several at a time. Table and listing are read once per process."""
    entries = _entries(shard, columns)[chunk.start : chunk.stop]
    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(partial(_content, has_synthetic=bool(columns.synthetic_captions)), entries))
    return source_rows(chunk, contents)


def _content(entry: _Entry, has_synthetic: bool) -> Content:
    texts = captions(entry.captions, [entry.synthetic] if has_synthetic else [])
    if entry.fault:
        return Content(entry.key, b"", texts, entry.fault)
    try:
        image = storage.read_bytes(entry.file)
    except NotFoundError:
        return Content(entry.key, b"", texts, "the file is gone")
    return Content(entry.key, image, texts, "" if image else "the image has no bytes")


@lru_cache(maxsize=4)
def _entries(shard: Shard, columns: Columns) -> list[_Entry]:
    if folder_shard(storage.stat(shard.path)) != shard:
        raise StorageError(f"{shard.path}: the folder is not as it was indexed; run tips-ray index again")
    entries: dict[str, _Entry] = {}
    for line in table_lines(shard.path):
        name = (line.get(columns.image) or "").strip()
        if not name:
            continue
        entry = entries.setdefault(name, _Entry(name, (line.get(columns.key) or name).strip()))
        entry.captions.append(line.get(columns.web_caption) or "")
        entry.synthetic += [line.get(column) or "" for column in columns.synthetic_captions]
    return _with_files(entries, shard)


def _with_files(entries: dict[str, _Entry], shard: Shard) -> list[_Entry]:
    """Find each name as a path, whole or below the folder, or by its last part, with or without the suffix."""
    root = os.path.dirname(shard.path) + "/"
    files = {file.uri.removeprefix(root): file.uri for file in _images(shard.path)}
    by_name: dict[str, list[str]] = {}
    for path in files:
        last = os.path.basename(path)
        for name in {last, os.path.splitext(last)[0]}:
            by_name.setdefault(name, []).append(path)
    for name, entry in entries.items():
        path = name.removeprefix("./").removeprefix(root)
        found = [path] if path in files else by_name.get(path, [])
        if len(found) == 1:
            entry.file = files.pop(found[0], "") or root + found[0]
        else:
            entry.fault = f"{len(found)} images have this name" if found else "there is no such image file"
    unnamed = [_Entry(path, path, files[path]) for path in sorted(files)]
    return [*entries.values(), *unnamed]


def _images(table: str) -> list[StoredFile]:
    files = storage.list_files(os.path.dirname(table))
    return [file for file in files if file.uri.lower().endswith(IMAGE_SUFFIXES)]


def table_header(table: str) -> list[str]:
    """Names of the columns of a CSV or TSV, local or s3://."""
    return list(_reader(table).fieldnames or ())


def table_lines(table: str) -> Iterator[dict[str, str]]:
    """Its lines, by column.

    Raises:
        StorageError: one cannot be read.
    """
    reader = _reader(table)
    try:
        yield from reader
    except csv.Error as error:
        raise StorageError(f"{table}: line {reader.line_num} cannot be read ({error}); correct its quotes") from None


def _reader(table: str) -> csv.DictReader:
    """Rows as dicts; the delimiter is the one that occurs most often in the first line, which names the columns."""
    text = storage.read_text(table).removeprefix("\ufeff")
    header = text.partition("\n")[0]
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=max(DELIMITERS, key=header.count))
    reader.fieldnames = [name.strip() for name in reader.fieldnames or ()]
    return reader
