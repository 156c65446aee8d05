"""Ray: build an index on a cluster, and decode every image once to know the bad ones in advance."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from tips_ray.config import DataConfig
from tips_ray.data.decode import BadImage, decode
from tips_ray.data.index import REJECTS, Index, Job, Scanned
from tips_ray.data.index_folder import opened_index
from tips_ray.ray_data_adapter import handed_out, in_order

CHUNKS_PER_TASK = 16
MOST_BLOCKS = 2000


def scan_on_ray(function: Callable[[Job], Scanned], jobs: list[Job]) -> Iterable[Scanned]:
    """A `Mapper` of `build_index`: a Ray task per shard, results in order."""
    task: Any = ray.remote(_called)
    for waiting in [task.remote(function, job) for job in jobs]:
        yield ray.get(waiting)


def _called(function: Callable[[Job], Scanned], job: Job) -> Scanned:
    return function(job)  # Ray makes no task of a partial function


def with_bad_images(index: Index, data: DataConfig, tell: Callable[[int], None]) -> Index:
    """The index with every row that does not decode among its rejects.

    Args:
        index: as it is written, for tasks read it at its `uri`.
        tell: called now and then with the number of rows looked at.
    """
    chunks = len(index.chunks.rows)
    of_task = max(CHUNKS_PER_TASK, -(-chunks // MOST_BLOCKS))
    look: Any = partial(_look, index_uri=index.uri, data=data)
    numbers = handed_out(pa.table({"chunk": np.arange(chunks)}), of_task)
    found = numbers.map_batches(look, batch_size=CHUNKS_PER_TASK)
    rows, rejects = 0, index.rejects.to_pylist()
    known = {(row["path"], row["row"]) for row in rejects}
    for batch in in_order(found).iter_batches(batch_size=None, batch_format="pyarrow"):
        looked: Any = batch
        for part in looked.to_pylist():
            rows += part["rows"]
            rejects += [row for row in part["rejects"] if (row["path"], row["row"]) not in known]
        tell(rows)
    shards = {row["path"]: number for number, row in enumerate(index.shards.to_pylist())}
    rejects.sort(key=lambda row: (shards[row["path"]], row["row"]))
    return replace(index, rejects=pa.Table.from_pylist(rejects, REJECTS))


def _look(batch: dict[str, np.ndarray], index_uri: str, data: DataConfig) -> pa.Table:
    index = opened_index(index_uri)
    found = [list(_bad_rows(index, chunk, data)) for chunk in batch["chunk"].tolist()]
    rows = index.chunks.rows[batch["chunk"]].astype(np.int64)
    kind = pa.list_(pa.struct(list(REJECTS)))
    return pa.table({"rows": pa.array(rows), "rejects": pa.array(found, kind)})


def _bad_rows(index: Index, chunk: int, data: DataConfig) -> Iterator[dict[str, Any]]:
    shard, _ = index.shard(int(index.chunks.shard[chunk]))
    for number, row in enumerate(index.read(chunk), start=int(index.chunks.row[chunk])):
        reason = row["error"] or _fault(row["image"], data)
        if reason:
            yield {"path": shard.path, "row": number, "key": row["key"], "reason": reason}


def _fault(image: bytes, data: DataConfig) -> str:
    try:
        decode(image, data.max_image_bytes, data.max_image_pixels)
    except BadImage as error:
        return str(error)
    return ""
