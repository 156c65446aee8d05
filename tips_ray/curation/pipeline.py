"""Ray Data pipelines of curation: each task makes one file, or looks at one. The same command makes what is missing."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from ray.data import Dataset, TaskPoolStrategy

from tips_ray import storage
from tips_ray.config.curation import CurationConfig
from tips_ray.curation.selection import file_name
from tips_ray.curation.signals import SignalFiles, signals
from tips_ray.data import sources
from tips_ray.data.chunk_files import file_name as signals_name
from tips_ray.data.index_folder import opened_index
from tips_ray.data.sources.columns import Columns
from tips_ray.data.sources.selection import faults
from tips_ray.ray_data_adapter import handed_out, in_order
from tips_ray.storage import StorageError

READERS_PER_CPU = 2
"""Tasks per CPU: one waits for storage while the other works."""
FEW_ERRORS = 16
"""Unreadable rows that a file may always have: a small one may consist of them."""
IMAGE_ROWS = 64
"""Rows of a row group of a new shard: a chunk is read without its neighbours."""
NEW_COLUMNS = Columns("image", "web_caption", ("synthetic_captions",), "key")
SHARD = pa.schema(
    [("key", pa.string()), ("image", pa.binary()), ("web_caption", pa.string())]
    + [("synthetic_captions", pa.list_(pa.string())), ("metadata", pa.string())]
)
"""`metadata`: what the raw data hold beside image and captions, as JSON."""
_MADE = pa.schema([("rows", pa.int64()), ("errors", pa.list_(pa.string()))])


def signals_stream(config: CurationConfig, index_uri: str, folder: SignalFiles, missing: Sequence[range]) -> Dataset:
    """Dataset with one row per written file of signals: its number of `rows`, and the `errors` of unreadable ones."""
    files = pa.table({"start": [file.start for file in missing], "stop": [file.stop for file in missing]})
    return _each(files, partial(_write_signals, config=config, index_uri=index_uri, folder=folder), config.data_cpus)


def shards_stream(config: CurationConfig, index_uri: str, folder: str, missing: Sequence[int]) -> Dataset:
    """Dataset with one row per new shard, as `signals_stream`.

    Args:
        config: its source names the raw data.
        index_uri: of a selection whose files are those of the new shards.
        folder: for the shards.
        missing: numbers of the selection's files.
    """
    files = pa.table({"file": pa.array(missing, pa.int64())})
    return _each(files, partial(_write_shard, index_uri=index_uri, folder=folder), config.data_cpus)


def faults_stream(index_uri: str, files: int, cpus: int) -> Dataset:
    """Dataset with one row per file of a selection: its `rows`, and in `errors` why each cannot be used, or "".

    Args:
        index_uri: of the selection.
        files: how many it has.
        cpus: that read.
    """
    return _each(pa.table({"file": np.arange(files)}), partial(_faults, index_uri=index_uri), cpus)


def _each(files: pa.Table, work: Any, cpus: int) -> Dataset:
    """Apply `work` to each row, which is one file, on that many CPUs."""
    return in_order(
        handed_out(files, 1).map_batches(
            work,
            batch_size=1,
            batch_format="numpy",
            compute=TaskPoolStrategy(min(READERS_PER_CPU * cpus, files.num_rows)),
            num_cpus=1 / READERS_PER_CPU,
        )
    )


def _write_signals(
    batch: Mapping[str, np.ndarray], config: CurationConfig, index_uri: str, folder: SignalFiles
) -> pa.Table:
    index = opened_index(index_uri)
    chunks = range(int(batch["start"][0]), int(batch["stop"][0]))
    table = pa.concat_tables([signals(index, chunk, config) for chunk in chunks])
    errors = [error for error in table["error"].to_pylist() if error]
    if len(errors) > max(config.max_bad_fraction * table.num_rows, FEW_ERRORS):
        raise StorageError(
            f"{len(errors)} of {table.num_rows} rows of a file cannot be read, e.g. {errors[0]}; see whether the "
            f"images are still there, or raise max_bad_fraction ({config.max_bad_fraction:g}) if the data are so"
        )
    folder.write(signals_name(index, chunks), table)
    return pa.table([[table.num_rows], [errors]], schema=_MADE)


def _faults(batch: Mapping[str, np.ndarray], index_uri: str) -> pa.Table:
    index = opened_index(index_uri)
    shard, columns = index.shard(int(batch["file"][0]))
    chunks = np.flatnonzero(index.chunks.shard == int(batch["file"][0])).tolist()
    errors = [fault for chunk in chunks for fault in faults(shard, index.chunk(chunk), columns)]
    return pa.table([[len(errors)], [errors]], schema=_MADE)


def _write_shard(batch: Mapping[str, np.ndarray], index_uri: str, folder: str) -> pa.Table:
    """Write the images of a file of a selection, row by row, and all that the data hold beside them."""
    index, number = opened_index(index_uri), int(batch["file"][0])
    shard, columns = index.shard(number)
    buffer, written = pa.BufferOutputStream(), 0
    with pq.ParquetWriter(buffer, SHARD, compression="zstd", use_dictionary=False) as writer:
        for chunk in np.flatnonzero(index.chunks.shard == number).tolist():
            rows = index.read(chunk)
            fields = sources.read_fields(shard, index.chunk(chunk), columns, None)
            bad = next((row for row in rows if row["error"]), None)
            if bad:
                raise StorageError(f"{bad['key']}: {bad['error']}; restore the data, or curate them again")
            table = [
                {**row, "metadata": json.dumps(held, sort_keys=True, default=str)}
                for row, held in zip(rows, fields, strict=True)
            ]
            writer.write_table(pa.Table.from_pylist(table, SHARD), row_group_size=IMAGE_ROWS)
            written += len(rows)
    storage.write_bytes(storage.join(folder, f"{file_name(number)}.parquet"), buffer.getvalue().to_pybytes())
    return pa.table([[written], [[]]], schema=_MADE)


def places_in_shard(rows: int, path: str, size: int, etag: str) -> list[list[Any]]:
    """Columns of `PLACED` for the rows of a new shard."""
    row = np.arange(rows)
    group, within = row // IMAGE_ROWS, row % IMAGE_ROWS
    first = row - within
    count = np.minimum(IMAGE_ROWS, rows - first)
    names = ([path] * rows, ["parquet"] * rows, [size] * rows, [etag] * rows)
    return [*names, *(column.tolist() for column in (row, first, count, group, np.zeros_like(row)))]
