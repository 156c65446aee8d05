"""Captions of the store for the chunks of an index: where they are kept, how they join the rows."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tips_ray.captioning.chunks import CaptionedShard, ChunkCaptions, image_sha256
from tips_ray.captioning.store import CaptionStore
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index

POLL_SECONDS = (0.2, 5.0)
"""Between two looks for captions that are not made yet: the first, and the longest."""
TELL_SECONDS = 30.0
log = logging.getLogger(__name__)


def _sleep(seconds: float) -> str:
    time.sleep(seconds)
    return ""


@dataclass(frozen=True)
class Waiting:
    """What a reader does about captions that are not there yet."""

    seconds: float = 0.0
    """0: they should be there by now."""
    pause: Callable[[float], str] = _sleep
    """Between two looks: returns after so many seconds with nothing, or as soon as it is known why none will come."""


def captioned_shard(index: Index, number: int) -> CaptionedShard:
    """What the store calls a shard of the index."""
    shard, columns = index.shard(number)
    first, last = np.searchsorted(index.chunks.shard, (number, number + 1))
    return CaptionedShard(
        shard.path, shard.bytes, shard.etag, shard.format, columns.image, index.chunk_rows, int(last - first)
    )


def place_of(index: Index, chunk: int) -> tuple[CaptionedShard, int]:
    """Shard and number inside it of a chunk of the index."""
    number = int(index.chunks.shard[chunk])
    return captioned_shard(index, number), chunk - int(np.searchsorted(index.chunks.shard, number))


def missing_chunks(index: Index, store: CaptionStore) -> NDArray[np.int64]:
    """Chunks of the index that have no captions, ascending; from listings alone."""
    shards = [captioned_shard(index, number) for number in range(index.shards.num_rows)]
    firsts = np.searchsorted(index.chunks.shard, range(len(shards)))
    parts = [first + np.array(missing, np.int64) for first, missing in zip(firsts, store.missing(shards), strict=True)]
    return np.concatenate(parts)


def read_captions(
    index: Index, chunks: Sequence[int], store: CaptionStore, waiting: Waiting
) -> dict[int, ChunkCaptions]:
    """The captions of `chunks` of the index.

    Raises:
        ValueError: they did not come in time, or will not.
    """
    found: dict[int, ChunkCaptions] = {}
    started, pause, told = time.monotonic(), POLL_SECONDS[0], TELL_SECONDS
    while True:
        left = [chunk for chunk in chunks if chunk not in found]
        parts = store.read_many([place_of(index, chunk) for chunk in left])
        found |= {chunk: part for chunk, part in zip(left, parts, strict=True) if part is not None}
        if len(found) == len(chunks):
            return found
        waited = time.monotonic() - started
        missing = len(chunks) - len(found)
        _require_hope(missing, len(chunks), waited, store, waiting)
        if waited > told:
            log.info("%d of %d chunks wait for captions since %.0f s", missing, len(chunks), waited)
            told += TELL_SECONDS
        never = waiting.pause(pause)
        if never:
            raise ValueError(f"captions of {missing} chunks will not come: {never}")
        pause = min(2 * pause, POLL_SECONDS[1])


def with_captions(rows: Sequence[SourceRow], captions: ChunkCaptions) -> list[SourceRow]:
    """The rows of a chunk with the store's captions for synthetic ones.

    A row without captions keeps the captioner's reason as long as it has no fault of its own. Captions that were made
    from other bytes make a row bad: a text that belongs to another image is worse than none.
    """
    hashes = image_sha256(row["image"] for row in rows)
    return [
        _joined(row, texts, error, own == made)
        for row, texts, error, own, made in zip(
            rows, captions.captions, captions.error, hashes, captions.sha256, strict=True
        )
    ]


def _joined(row: SourceRow, texts: list[str], error: str, is_same_image: bool) -> SourceRow:
    if not row["error"] and not is_same_image:
        fault = "its captions were made from another image (sha256 differs): caption the data again"
        return SourceRow(**{**row, "error": fault, "image": b""})
    return SourceRow(**{**row, "synthetic_captions": [] if error else list(texts)})


def _require_hope(missing: int, asked: int, waited: float, store: CaptionStore, waiting: Waiting) -> None:
    if waited >= waiting.seconds:
        after = f" after {waited:.0f} s" if waiting.seconds else ""
        raise ValueError(
            f"{missing} of {asked} chunks have no captions in {store.folder}{after}: run tips-ray caption first, "
            "or set captions.source=live"
        )
