"""Parts of a training stream, without Ray: ordered rows of a window -> rows with captions -> training rows."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import numpy as np

from tips_ray.config import RunConfig
from tips_ray.data.captions.join import Waiting, captions_folder, read_captions, with_captions
from tips_ray.data.captions.store import CaptionStore
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index, run_order
from tips_ray.data.index_folder import opened_index
from tips_ray.data.order import Order, OrderedRows

READERS = 16
"""Chunks of a window that are read at a time."""
IMAGE_BYTES, LEAST_IMAGE_BYTES = 150_000, 500
"""Assumed size of an image in sources with fewer bytes a row than the second: their files hold names or URLs."""


@dataclass(frozen=True)
class CaptionAccess:
    """Where a stream finds synthetic captions that the data do not hold."""

    store: CaptionStore
    coordinator: Any = None
    """Actor handle of the caption coordinator of captioning beside training; None: all captions are there."""


def _order_of(config: RunConfig, index_uri: str) -> Order:
    return run_order(opened_index(index_uri), config.data, config.seed, config.global_batch_images)


order_of = cast("Callable[[RunConfig, str], Order]", lru_cache(maxsize=2)(_order_of))
"""The order of a run of this config over the data at an index's URI, once per process."""


def window_bytes(config: RunConfig, index_uri: str) -> int:
    """Bytes of the encoded rows of a window: the mean of its sources, each as often as its weight says."""
    index, weights = opened_index(index_uri), np.array([source.weight for source in config.data.sources])
    bytes_S = np.bincount(index.shards["source"].to_numpy(), index.shards["bytes"].to_numpy(), len(weights))
    row_bytes_S = bytes_S / np.maximum([source.rows for source in index.sources], 1)
    row_bytes_S = np.where(row_bytes_S >= LEAST_IMAGE_BYTES, row_bytes_S, IMAGE_BYTES)
    return int(window_rows(config, index_uri) * (row_bytes_S @ weights) / weights.sum())


def window_rows(config: RunConfig, index_uri: str) -> float:
    """Rows of a window: the mean over all data."""
    return float(opened_index(index_uri).chunks.rows.mean()) * config.data.window_chunks


def read_chunks(
    index: Index, rows: OrderedRows, store: CaptionStore | None = None, waiting: Waiting | None = None
) -> dict[int, list[SourceRow]]:
    """Every chunk that `rows` lie in, by its number and read once.

    With a store, the rows get its captions, which are waited for before any bytes are read.

    Raises:
        ValueError: captions are missing, were not made in time, or will not be made.
    """
    numbers = np.unique(rows.chunk_N).tolist()
    captions = read_captions(index, numbers, store, waiting) if store else {}
    with ThreadPoolExecutor(READERS) as pool:
        chunks = dict(zip(numbers, pool.map(index.read, numbers), strict=True))
    if store is None:
        return chunks
    return {
        number: with_captions(chunk, captions[number], captions_folder(index, number, store))
        for number, chunk in chunks.items()
    }


def ordered_rows(rows: OrderedRows, chunks: Mapping[int, Sequence[SourceRow]]) -> list[dict[str, Any]]:
    """Source rows at their positions."""
    places = zip(*(column.tolist() for column in rows), strict=True)
    return [
        {**chunks[chunk][row], "position": position, "step": step, "sample_key": key}
        for position, step, chunk, row, _, key in places
    ]


def views(rows: Sequence[Mapping[str, Any]], config: RunConfig, tokenizer_uri: str) -> dict[str, np.ndarray]:
    """Training rows of a micro-batch."""
    from tips_ray.data.views import row_settings, training_rows  # imports torch, which planners and readers do not need

    settings = row_settings(config, config.captions.per_image)
    return training_rows(rows, settings, _tokenizer(tokenizer_uri))


@lru_cache(maxsize=2)
def _tokenizer(uri: str) -> Any:
    from tips_ray.tokenizer import tokenizer_at

    return tokenizer_at(uri)
