"""Tables as whole Parquet files, local or s3://."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tips_ray import storage


def parquet_bytes(table: pa.Table, **options: Any) -> bytes:
    """The table as a Parquet file; `options` are those of `pyarrow.parquet.write_table`."""
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd", **options)
    return buffer.getvalue().to_pybytes()


def write_table(uri: str, table: pa.Table) -> None:
    """Write the table, over what is there."""
    storage.write_bytes(uri, parquet_bytes(table))


def read_table(uri: str, columns: Sequence[str] | None = None) -> pa.Table:
    """The named columns of a file; None: all."""
    return pq.read_table(pa.BufferReader(storage.read_bytes(uri)), columns=None if columns is None else [*columns])
