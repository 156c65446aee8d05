"""Captions of the store for the chunks of an index: where they are kept, how they join the rows."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tips_ray import storage
from tips_ray.data.captions.coordinator import News
from tips_ray.data.captions.store import CaptionedShard, CaptionStore, ChunkCaptions, image_sha256
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index

POLL_SECONDS = (0.2, 5.0)
"""Pauses between two looks for captions that are not made yet: the first, and the longest."""


@dataclass(frozen=True)
class Waiting:
    """How a reader waits for captions that are made beside training."""

    seconds: float
    """Longest time in which no chunk at all is captioned: a slow captioner is waited for, a dead one is not."""
    news: Callable[[float], News]
    """Returns the news of captioning after so many seconds, or as soon as it has failed."""


def captioned_shard(index: Index, number: int) -> CaptionedShard:
    """A shard of the index as the store knows it."""
    shard, columns = index.shard(number)
    content = index.shards["content"][number].as_py()
    first, last = np.searchsorted(index.chunks.shard, (number, number + 1))
    image = "" if shard.format == "selection" else columns.image  # its images are known by their hashes at every site
    identity = shard.path, shard.bytes, shard.etag, shard.format, image, index.chunk_rows
    return CaptionedShard(*identity, int(last - first), content)


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
    index: Index, chunks: Sequence[int], store: CaptionStore, waiting: Waiting | None = None
) -> dict[int, ChunkCaptions]:
    """The captions of `chunks` of the index.

    Args:
        waiting: None: they must be there already.

    Raises:
        ValueError: captions are missing, were not made in time, or will not be made.
    """
    found: dict[int, ChunkCaptions] = {}
    patience = _Patience(waiting) if waiting else None
    while True:
        left = [chunk for chunk in chunks if chunk not in found]
        parts = store.read_many([place_of(index, chunk) for chunk in left])
        found |= {chunk: part for chunk, part in zip(left, parts, strict=True) if part is not None}
        if len(found) == len(chunks):
            return found
        missing = f"{len(chunks) - len(found)} of {len(chunks)} chunks have no captions in {store.folder}"
        if patience is None:
            raise ValueError(f"{missing}: run tips-ray caption first, or set captions.source=live")
        patience.wait(missing)


def with_captions(rows: Sequence[SourceRow], captions: ChunkCaptions, folder: str) -> list[SourceRow]:
    """The rows of a chunk with the store's captions as synthetic captions.

    An image that the captioner could not read has none. Captions that were made from other bytes make a row bad: a
    text that belongs to another image is worse than none.

    Args:
        folder: of the shard's captions, for the sentence about such a row.
    """
    hashes = image_sha256(row["image"] for row in rows)
    fault = f"its captions were made from another image (sha256 differs): delete {folder} and caption again"
    joined = []
    for row, own, made, texts, error in zip(rows, hashes, *captions[1:], strict=True):
        if not row["error"] and not error and made != own:
            row = SourceRow(**{**row, "error": fault, "image": b""})
        joined.append(SourceRow(**{**row, "synthetic_captions": [] if error else list(texts)}))
    return joined


def captions_folder(index: Index, chunk: int, store: CaptionStore) -> str:
    """Where the captions of a chunk's shard are."""
    return storage.join(store.folder, store.known(place_of(index, chunk)[0]).name)


@dataclass
class _Patience:
    """How long one reader still waits; starts again with every chunk that is captioned anywhere."""

    waiting: Waiting
    made: int = -1
    since: float = field(default_factory=time.monotonic)
    pause: float = POLL_SECONDS[0]
    failure: str = ""

    def wait(self, missing: str) -> None:
        """Wait until it is time for another look; there is one more look after captioning has ended.

        Raises:
            ValueError: no captions will come any more.
        """
        if self.failure:
            raise ValueError(f"{missing}, and none will come: {self.failure}")
        news = self.waiting.news(self.pause)
        self.failure = news.failure
        if news.made != self.made:
            self.made, self.since = news.made, time.monotonic()
        quiet = time.monotonic() - self.since
        if quiet > self.waiting.seconds:
            raise ValueError(
                f"{missing}, and none were made for {quiet:.0f} s: see whether the cluster has room for a captioner "
                "(ray status), or raise captions.wait_seconds if a chunk takes longer"
            )
        self.pause = min(2 * self.pause, POLL_SECONDS[1])
