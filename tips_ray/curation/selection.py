"""Writes a selection: which rows were chosen, where they lie, and the lock that says what it was made from.

All files are pure functions of the rows, so that the same rows give the same bytes. A selection is read by
`tips_ray.data.sources.selection`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from tips_ray import storage
from tips_ray.data.index import Index
from tips_ray.data.sources.columns import Columns
from tips_ray.data.sources.selection import GROUP_ROWS, LOCK, METADATA, PLACED, PLACES, ROWS, SUFFIXES
from tips_ray.data.tables import parquet_bytes, read_table
from tips_ray.storage import NotFoundError, StorageError

VERSION = 1
DICTIONARY: Any = ["shard", "path", "format", "etag"]  # pyarrow's type stubs accept only bool
FILE_ROWS = 4096
"""Rows of a file of a selection: 400 MB of images where they are written to new shards."""


@dataclass(frozen=True)
class Part:
    """A file of a selection."""

    rows: pa.Table
    """Columns of `ROWS`."""
    places: pa.Table
    """Columns of `PLACED`, row by row."""


def file_name(number: int) -> str:
    """Name of a file of a selection, without its suffix."""
    return f"{number:06d}"


def parts(index: Index, signals: Iterable[pa.Table], is_kept_N: NDArray[np.bool_]) -> Iterator[Part]:
    """The files of a selection of rows of an index, in the order of the index.

    Args:
        index: of the raw data.
        signals: tables with `sample_id`, `key`, `image_sha256` and `captions_sha256`, in the order of the index.
        is_kept_N: for each sample.
    """
    held = pa.table({})
    for table in signals:
        sample_M = table["sample_id"].to_numpy()
        kept = table.filter(pa.array(is_kept_N[sample_M]))
        held = pa.concat_tables([held, kept]) if held.num_columns else kept
        while held.num_rows >= FILE_ROWS:
            yield _part(index, held.slice(0, FILE_ROWS))
            held = held.slice(FILE_ROWS)
    if held.num_rows:
        yield _part(index, held)


def _part(index: Index, chosen: pa.Table) -> Part:
    sample_M = chosen["sample_id"].to_numpy()
    places = places_of(index, sample_M)
    names = index.shards["name"].take(pa.array(index.chunks.shard[index.chunks_of(sample_M)]))
    columns = [chosen["key"], names, places["row"], chosen["image_sha256"], chosen["captions_sha256"]]
    return Part(pa.table(columns, schema=ROWS), places)


def places_of(index: Index, sample_M: NDArray[np.int64]) -> pa.Table:
    """Where samples lie: columns of `PLACED`."""
    table, chunk_M = index.chunks, index.chunks_of(sample_M)
    shards = index.shards.take(pa.array(table.shard[chunk_M]))
    formats = [index.sources[source].format for source in shards["source"].to_pylist()]
    row_M = table.row[chunk_M] + sample_M - table.first_sample[chunk_M]
    bounds = (table.row[chunk_M], table.rows[chunk_M].astype(np.int64), table.start[chunk_M], table.stop[chunk_M])
    return pa.table([shards["path"], formats, shards["bytes"], shards["etag"], row_M, *bounds], schema=PLACED)


class SelectionWriter:
    """Writes the files of a selection below a folder, and its lock last."""

    def __init__(self, folder: str, columns: Columns) -> None:
        """`columns`: of the shards that the places name."""
        self.folder, self.columns = storage.resolved(folder), columns
        self.files: dict[str, str] = {}
        """sha256 of each file of rows by its name."""
        self.rows = 0
        self._order = hashlib.sha256()

    def write(self, number: int, part: Part) -> None:
        """Write a file of rows and that of their places; what is there already is replaced by the same bytes."""
        content = _parquet(part.rows)
        name = file_name(number)
        write_places(self.folder, name, part.places, self.columns)
        storage.write_bytes(storage.join(self.folder, name + SUFFIXES[0]), content)
        self.files[name + SUFFIXES[0]] = hashlib.sha256(content).hexdigest()
        self.rows += part.rows.num_rows
        for digest in zip(*(part.rows[column].to_pylist() for column in ROWS.names[3:]), strict=True):
            self._order.update(b"".join(digest))

    def close(self, made_from: Mapping[str, Any]) -> dict[str, Any]:
        """Write the lock, and delete what an earlier, longer selection has left.

        Args:
            made_from: source, fingerprint of the data and thresholds, for people and for `tips-ray data verify`.
        """
        lock = {"version": VERSION, "rows": self.rows, "order_sha256": self._order.hexdigest(), "files": self.files}
        stems = {name.rpartition(".")[0] for name in self.files}
        for name in storage.list_names(self.folder):
            if name.endswith((*SUFFIXES, PLACES)) and name.rpartition(".")[0] not in stems:
                storage.delete(storage.join(self.folder, name))
        storage.write_text(storage.join(self.folder, LOCK), json.dumps({**lock, **made_from}, indent=1) + "\n")
        return {**lock, **made_from}


def write_places(folder: str, name: str, places: pa.Table, columns: Columns) -> None:
    """Write where the rows of a file lie.

    Args:
        folder: of the selection.
        name: of the file, without suffix.
        places: columns of `PLACED`.
        columns: of the shards that they name.
    """
    metadata = {METADATA: json.dumps(columns._asdict(), sort_keys=True).encode()}
    storage.write_bytes(storage.join(folder, name + PLACES), _parquet(places.replace_schema_metadata(metadata)))


def read_lock(uri: str) -> dict[str, Any]:
    """The lock of a selection, by its folder or its file.

    Raises:
        ValueError: there is none, or it is damaged or of a later version.
    """
    place = uri if uri.endswith(LOCK) else storage.join(uri, LOCK)
    try:
        lock = json.loads(storage.read_text(place))
        if lock["version"] > VERSION:
            raise StorageError(f"{place} has version {lock['version']}, this program reads up to {VERSION}")
        return {**lock, "folder": place.removesuffix(f"/{LOCK}"), "files": dict(lock["files"])}
    except NotFoundError:
        raise ValueError(f"{uri}: there is no {LOCK} of a selection; tips-ray curate writes one") from None
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"{place} is no lock of a selection ({error}); copy it again") from None


def read_parts(lock: Mapping[str, Any]) -> Iterator[tuple[str, Part]]:
    """The files of a selection by their names without suffix; rows are checked against the lock.

    Raises:
        ValueError: a file is not the one that the lock names.
    """
    for name, digest in sorted(lock["files"].items()):
        content = storage.read_bytes(storage.join(lock["folder"], name))
        if hashlib.sha256(content).hexdigest() != digest:
            raise ValueError(f"{lock['folder']}/{name} is not the file that the lock names; copy the folder again")
        stem = name.removesuffix(SUFFIXES[0])
        places = read_table(storage.join(lock["folder"], stem + PLACES))
        yield stem, Part(pq.read_table(pa.BufferReader(content)), places)


def _parquet(table: pa.Table) -> bytes:
    return parquet_bytes(table, use_dictionary=DICTIONARY, row_group_size=GROUP_ROWS)
