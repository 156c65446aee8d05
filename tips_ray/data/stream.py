"""What a training stream is made of, without Ray: ordered rows of a window -> rows with captions -> training rows."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np

from tips_ray.config import RunConfig
from tips_ray.data.captions.join import Waiting, captions_folder, read_captions, with_captions
from tips_ray.data.captions.store import CaptionStore
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index, opened_index, run_order
from tips_ray.data.order import Order, OrderedRows

READERS = 16
"""Chunks of a window that are read at a time."""


@dataclass(frozen=True)
class CaptionAccess:
    """Where a stream finds synthetic captions that the data do not hold."""

    store: CaptionStore
    pace: Any = None
    """Actor handle of captioning beside training (`data.pace`); None: all captions are there."""


@dataclass(frozen=True)
class StreamInputs:
    """What every process of a stream needs, small enough to travel with it."""

    config: RunConfig
    index_uri: str
    tokenizer_path: str
    captions: CaptionAccess | None = field(default=None, compare=False)
    """None: the data hold them. Has no part in the order, which is kept by the rest."""

    @property
    def store(self) -> CaptionStore | None:
        """Of the captions that the data do not hold."""
        return self.captions.store if self.captions else None

    @property
    def pace(self) -> Any:
        """Actor handle of captioning beside training; None: there is none."""
        return self.captions.pace if self.captions else None


@lru_cache(maxsize=2)
def order_of(inputs: StreamInputs) -> Order:
    """The order of the run, once per process."""
    config = inputs.config
    return run_order(opened_index(inputs.index_uri), config.data, config.seed, config.global_batch_images)


def read_chunks(
    index: Index, rows: OrderedRows, store: CaptionStore | None = None, waiting: Waiting | None = None
) -> dict[int, list[SourceRow]]:
    """Every chunk that `rows` lie in, by its number and read once.

    With a store its captions stand in the rows; they are waited for before any bytes are read.

    Raises:
        ValueError: captions are not there, did not come, or will not.
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


def views(rows: Sequence[Mapping[str, Any]], inputs: StreamInputs) -> dict[str, np.ndarray]:
    """Training rows of a micro-batch."""
    from tips_ray.data.views import row_settings, training_rows  # torch, whose start planners and readers need not pay

    settings = row_settings(inputs.config, inputs.config.captions.per_image)
    return training_rows(rows, settings, _tokenizer(inputs.tokenizer_path))


@lru_cache(maxsize=2)
def _tokenizer(path: str) -> Any:
    from tips_ray.tokenizer import tokenizer_at

    return tokenizer_at(path)
