"""A folder of images beside one CSV or TSV (or `;`, `|`) with a file name and a caption per line, or as `layouts` says.

The first caption of an image is its web caption, the next ones its synthetic captions, unless the table has columns
for those. Rows: the images in order of first appearance, then those that the table does not name.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from tips_ray import storage
from tips_ray.config import ColumnsConfig
from tips_ray.data.columns import SourceRow
from tips_ray.data.sources import layouts
from tips_ray.data.sources.columns import IMAGE, Columns, check, check_cells, resolve, with_fields
from tips_ray.data.sources.image_files import IMAGE_SUFFIXES, ImageFinder, image_files, thumbnails
from tips_ray.data.sources.shard import Chunk, Content, Reject, Scan, Shard, source_rows
from tips_ray.data.sources.tables import Line, Table, header, read_table
from tips_ray.data.sources.texts import captions_of, column_of, is_number
from tips_ray.errors import listed
from tips_ray.storage import NotFoundError, StorageError, StoredFile

SUFFIXES = (".csv", ".tsv")
FILE = ("image", "file_name", "filename", "file", "path", "image_path", "image_name", "filepath")
FILE += (*IMAGE[1:], "key", "id")
SAMPLED_LINES = 1000
"""Lines at the head of a table that tell which columns hold numbers."""
READERS = 8
"""Images of a chunk that are read at the same time."""


@dataclass
class _Entry:
    key: str
    file: str = ""
    """URI of the image; empty where there is no such file."""
    fault: str = ""
    lines: list[dict[str, Any]] = field(default_factory=list)
    """The columns of captions in each line about the image."""


class _Images:
    """The rows of a folder: one for each image, whatever names the lines of the table give it."""

    def __init__(self, folder: str) -> None:
        self.finder = ImageFinder(folder)
        self.by_name: dict[str, _Entry] = {}
        self.by_path: dict[str, _Entry] = {}
        """By the path below the folder, or by the name where there is no such image."""

    def entry(self, name: str, key: str) -> _Entry:
        """The row of an image that the table names; `key` is the row's if it is new."""
        if name not in self.by_name:
            path, fault = self.finder.find(name)
            file = self.finder.files[path].uri if path else ""
            self.by_name[name] = self.by_path.setdefault(path or name, _Entry(key or name, file, fault))
        return self.by_name[name]

    def entries(self) -> list[_Entry]:
        """Those that were asked for, and the images that no line names."""
        finder, unnamed = self.finder, sorted(self.finder.counted - self.by_path.keys())
        others = [_Entry(path, finder.files[path].uri, finder.fault(path)) for path in unnamed]
        return [*self.by_path.values(), *others]


def folder_shard(table: StoredFile) -> Shard:
    """The folder of `table` as one shard; its etag covers the table and every image."""
    files = _files_of(table)
    root = layouts.image_folder(table.uri)
    described = repr([(file.uri, file.bytes, file.etag) for file in files])
    described += " without thumbnails" * bool(thumbnails(files[1:], root))
    digest = hashlib.sha256(described.encode()).hexdigest()
    return Shard(table.uri, "folder", sum(file.bytes for file in files), digest[:32])


def files_of(shard: Shard) -> list[StoredFile]:
    """The table and all images of a shard."""
    return _files_of(storage.stat(shard.path))


def images_of(shard: Shard, columns: Columns) -> set[str]:
    """URIs of the images that are rows."""
    return {entry.file for entry in _entries(shard, columns)} - {""}


def _files_of(table: StoredFile) -> list[StoredFile]:
    return [table, *image_files(layouts.image_folder(table.uri))]


def columns_of(shard: Shard, wanted: ColumnsConfig) -> Columns:
    """Resolved columns of the table; `image` is the one with the file names, which are the keys unless `key` is set.

    Raises:
        ValueError: a column is absent, or the table begins with a row instead of a header.
    """
    table = _table(shard.path)
    names = table.columns
    rows = [dict(zip(names, line.cells, strict=False)) for line in table.lines[:SAMPLED_LINES]]
    columns = resolve(wanted, names, shard.path, FILE, _passed_over(rows, wanted))
    _check_once(columns, names, shard.path)
    columns = with_fields(columns, rows)
    check_cells(columns, rows, shard.path)
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
    entries = _entries_of(shard, chunk, columns)
    with ThreadPoolExecutor(READERS) as pool:
        contents = list(pool.map(partial(_content, columns=columns), entries))
    return source_rows(chunk, contents)


def read_captions(shard: Shard, chunk: Chunk, columns: Columns) -> list[SourceRow]:
    """Rows of a chunk without their images, which are not read."""
    entries = _entries_of(shard, chunk, columns)
    return source_rows(chunk, [_captions(entry, columns) for entry in entries])


def read_fields(shard: Shard, chunk: Chunk, columns: Columns, names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Cells of other columns of the table for each row of a chunk, of the first line of its image; None: all."""
    names = _table(shard.path).columns if names is None else names
    entries = _entries_of(shard, chunk, columns._replace(synthetic_captions=tuple(names)))
    return [entry.lines[0] if entry.lines else {} for entry in entries]


def _captions(entry: _Entry, columns: Columns) -> Content:
    """A row without its image."""
    texts, unread = captions_of(entry.lines, columns.web_caption, columns.synthetic_captions)
    return Content(entry.key, b"", texts, entry.fault or unread)


def _content(entry: _Entry, columns: Columns) -> Content:
    found = _captions(entry, columns)
    if found.error:
        return found
    try:
        image = storage.read_bytes(entry.file)
    except NotFoundError:
        return found._replace(error="the file is gone")
    return found._replace(image=image, error="" if image else "the image has no bytes")


def _entries_of(shard: Shard, chunk: Chunk, columns: Columns) -> list[_Entry]:
    """
    Raises:
        StorageError: there are fewer rows than the index says; earlier versions made two of an image with two names.
    """
    entries = _entries(shard, columns)[chunk.start : chunk.stop]
    if len(entries) != chunk.rows:
        raise StorageError(f"{shard.path}: its index has more rows than are read; delete the index to make it again")
    return entries


@lru_cache(maxsize=4)
def _entries(shard: Shard, columns: Columns) -> list[_Entry]:
    if folder_shard(storage.stat(shard.path)) != shard:
        raise StorageError(f"{shard.path}: the folder is not as it was indexed; run tips-ray index again")
    table, held = _table(shard.path), columns.of_captions
    names = {column_of(name, table.columns) for name in held}
    images = _Images(layouts.image_folder(shard.path))
    odd = [
        _odd(line, f"the line has not as many cells as there are columns: {len(line.cells)}") for line in table.misfits
    ]
    for line in table.lines:
        cells = dict(zip(table.columns, line.cells, strict=False))
        name = _text(cells.get(columns.image))
        if name and (len(line.cells) == 1 or column_of(columns.web_caption, cells) in {"", *cells}):
            entry = images.entry(name, _text(cells.get(columns.key)))
            entry.lines.append({column: cells[column] for column in names & cells.keys()})
        elif any(not isinstance(cell, str) or cell.strip() for cell in line.cells):  # no text: a line of JSON, also {}
            odd.append(_odd(line, "the line ends before its caption" if name else "the line names no image"))
    return [*images.entries(), *odd]


def _text(cell: Any) -> str:
    return "" if cell is None or cell != cell else str(cell).strip()  # NaN is what pandas writes for an empty cell


def _odd(line: Line, fault: str) -> _Entry:
    """A line that belongs to no image: a row of its own at the end, so that it is counted."""
    return _Entry(f"line {line.number}", fault=fault)


def table_header(table: str) -> list[str]:
    """Names of the columns of a table, local or s3://."""
    found = layouts.table_of(table)
    return header(storage.read_text(table)) if found is None else found.columns


def table_lines(table: str) -> Iterator[dict[str, Any]]:
    """Its lines, by column, with cells as they are; a cell that is missing at the end of a line is empty.

    Raises:
        ValueError: the table, or a line of it, cannot be read for certain.
    """
    found = _table(table)
    if found.misfits:
        numbers = ", ".join(str(line.number) for line in found.misfits[:10])
        raise ValueError(f"{table}: these lines have not as many cells as there are columns: {numbers}; correct them")
    for line in found.lines:
        yield dict.fromkeys(found.columns, "") | dict(zip(found.columns, line.cells, strict=False))


def _table(table: str) -> Table:
    if (found := layouts.table_of(table)) is not None:
        return found
    text = storage.read_text(table)
    if other := storage.looks_like(text[:99].encode()):
        raise ValueError(f"{table}: this is no table but {other}")
    names = header(text)
    if any(name.lower().endswith(IMAGE_SUFFIXES) for name in names):
        raise ValueError(
            f"{table}: the first line must name the columns, and it is {listed(names)}; put a line "
            "`image,caption` above it"
        )
    return read_table(text, table)


def _passed_over(rows: list[dict[str, Any]], wanted: ColumnsConfig) -> set[str]:
    """Columns that hold numbers alone, as texts; none that the config names."""
    held = [(name, _text(cell)) for row in rows for name, cell in row.items() if _text(cell)]
    texts = {name for name, text in held if not is_number(text)}
    return {name for name, _ in held} - texts - {wanted.web_caption, *(wanted.synthetic_captions or ())}


def _check_once(columns: Columns, names: list[str], table: str) -> None:
    for name in (columns.image, columns.key, *columns.of_captions):
        if names.count(name) > 1:
            raise ValueError(f"{table}: two columns have the name {name}; give one of them another name")
