"""Ray Data: the rest of a run as one stream of training rows, in the order of `data.order`.

m rows of a block. The source is a range of window numbers in few blocks, expanded while streaming across epoch borders.
All blocks have exactly m rows and keep their order, so that a streaming split deals them round-robin: with W workers
the union of the workers' k-th batches is the k-th global batch, whatever W (measured; docs/decisions/0002-stream.md).
"""

import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import Dataset, TaskPoolStrategy

from tips_ray.config import RunConfig
from tips_ray.data.captions.coordinator import News
from tips_ray.data.captions.join import Waiting
from tips_ray.data.index_folder import opened_index
from tips_ray.data.order import OrderedRows
from tips_ray.data.stream import CaptionAccess, order_of, ordered_rows, read_chunks, views, window_bytes
from tips_ray.ray_data_adapter import handed_out, join_last_stages, leave_half_imported

WINDOWS_AT_ONCE, MOST_WINDOWS = 2, 64
"""Windows that are read at a time: per CPU of the data stream, and at most. A window of 0.6 GB that takes 3 s to read
feeds 1,400 images/s: the rate times the latency of 64 nodes is about 64 windows."""
_ROW = pa.schema(
    [("position", pa.int64()), ("step", pa.int64()), ("sample_id", pa.int64()), ("sample_key", pa.int64())]
    + [("key", pa.string()), ("image", pa.binary()), ("web_caption", pa.string())]
    + [("synthetic_captions", pa.list_(pa.string())), ("error", pa.string())]
)


def training_stream(
    config: RunConfig, index_uri: str, tokenizer_uri: str, captions: CaptionAccess | None, start_step: int
) -> Dataset:
    """Training rows of the steps [start_step, total_steps), in blocks of exactly `images_per_pass` rows.

    Reading holds no CPU: it mostly waits, and with one CPU for the stream no views would be made meanwhile.

    Args:
        config: of the run.
        index_uri: of the data.
        tokenizer_uri: of the run's vocabulary.
        captions: access to captions outside the data; None: the data hold them.
        start_step: the first step to stream.
    """
    start, stop = (step * config.global_batch_images for step in (start_step, config.schedule.total_steps))
    windows = order_of(config, index_uri).windows(start, stop)
    rows = config.images_per_pass
    read: Any = partial(_read_windows, config=config, index_uri=index_uri, captions=captions, start=start, stop=stop)
    make_views: Any = partial(_views, config=config, tokenizer_uri=tokenizer_uri)
    stream = (
        handed_out(pa.table({"window": pa.array(windows, pa.int64())}), 1)
        .map_batches(
            read,
            batch_size=1,
            batch_format="numpy",
            compute=TaskPoolStrategy(min(WINDOWS_AT_ONCE * config.resources.data_cpus, MOST_WINDOWS)),
            num_cpus=0,
            memory=_read_memory(config, index_uri),
        )
        .map_batches(make_views, batch_size=rows, batch_format="pyarrow", resources=config.resources.role("data"))
        .repartition(target_num_rows_per_block=rows, strict=True)
    )
    join_last_stages(stream)
    return stream


def _read_memory(config: RunConfig, index_uri: str) -> int:
    """Memory that Ray keeps for a task that reads a window: at most half of a node's, so that one always runs."""
    memories = [node["Resources"].get("memory", 0) for node in ray.nodes() if node["Alive"]]
    return min(window_bytes(config, index_uri), int(max(memories, default=0) // 2))


def tell_coordinator(config: RunConfig, index_uri: str, captions: CaptionAccess | None, step: int) -> None:
    """Tell the caption coordinator that training is at `step`: this step, the next and the prefetched batches are due.

    Prefetched batches count because a worker's iterator hands out no batch before they are there.
    """
    if captions and captions.coordinator:
        ready = config.resources.workers * config.data_prefetch_batches * config.images_per_pass
        stop = (step + 2) * config.global_batch_images + ready
        captions.coordinator.want.remote(order_of(config, index_uri).window_of(stop - 1))


def followed(
    stream: Iterator[dict[str, Any]], config: RunConfig, index_uri: str, captions: CaptionAccess | None
) -> Iterator[dict[str, Any]]:
    """The stream of one worker; reports its step and how long it has waited to the caption coordinator."""
    asked = time.monotonic()
    for columns in stream:
        if captions and captions.coordinator:
            captions.coordinator.add_waited.remote(time.monotonic() - asked)
            tell_coordinator(config, index_uri, captions, int(columns["step"][0]))
        yield columns
        asked = time.monotonic()


def _read_windows(
    batch: dict[str, np.ndarray],
    config: RunConfig,
    index_uri: str,
    captions: CaptionAccess | None,
    start: int,
    stop: int,
) -> Iterator[pa.Table]:
    """Ordered rows at positions [start, stop) of each window, a part of a window at a time."""
    index, order = opened_index(index_uri), order_of(config, index_uri)
    store, coordinator = (captions.store, captions.coordinator) if captions else (None, None)
    waiting = waiting_for(coordinator, config) if coordinator else None
    for window in batch["window"].tolist():
        rows = order.window_rows(window).between(start, stop)
        if coordinator:
            ray.get(coordinator.admit.remote(window))
        chunks = read_chunks(index, rows, store, waiting)
        for first in range(0, len(rows.position_N), config.images_per_pass):
            part = OrderedRows(*(column[first : first + config.images_per_pass] for column in rows))
            yield pa.Table.from_pylist(ordered_rows(part, chunks), schema=_ROW)


def waiting_for(coordinator: ActorHandle, config: RunConfig) -> Waiting:
    """How long to wait for captions that are made beside training.

    The pause is a call of an actor, not a sleep: a task that waits for an answer lends its CPU to others meanwhile.
    Otherwise tasks that wait for captions of later windows would hold the CPUs that views of the first one need.
    """
    return Waiting(config.captions.wait_seconds, lambda seconds: News(*ray.get(coordinator.news.remote(seconds))))


def _views(table: pa.Table, config: RunConfig, tokenizer_uri: str) -> dict[str, np.ndarray]:
    leave_half_imported()
    return views(table.to_pylist(), config, tokenizer_uri)
