"""What a captioner's captions are like, in numbers and examples."""

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from tips_ray.captioning.chunks import DamagedError
from tips_ray.data.captions.store import THREADS, CaptionStore

SHOWN_EXAMPLES = 5


@dataclass
class CaptionStats:
    """Sums over shards."""

    shards: int = 0
    objects: int = 0
    chunks: int = 0
    rows: int = 0
    captions: int = 0
    words: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    """Rows without captions by reason: the error up to its first colon."""
    examples: list[str] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)
    """A sentence for each shard that could not be read to its end."""
    hashes: list[np.ndarray] = field(default_factory=list)

    @property
    def duplicate_share(self) -> float:
        """Share of captions that another image has too, the first of each left out."""
        return 1 - len(np.unique(np.concatenate(self.hashes))) / self.captions if self.captions else 0.0

    def add(self, other: "CaptionStats") -> None:
        """Count those of another shard too."""
        for name in ("shards", "objects", "chunks", "rows", "captions", "words", "damaged", "hashes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.errors += other.errors
        self.examples = (self.examples + other.examples)[:SHOWN_EXAMPLES]


def stats(store: CaptionStore) -> CaptionStats:
    """Of all shards; every object is read once."""
    total = CaptionStats()
    with ThreadPoolExecutor(THREADS) as pool:
        for found in pool.map(lambda name: _shard_stats(store, name), store.shard_names()):
            total.add(found)
    return total


def _shard_stats(store: CaptionStore, shard_name: str) -> CaptionStats:
    found = CaptionStats(shards=1, objects=len(store.names(shard_name)))
    try:
        for _, _, chunk in store.chunks(shard_name):
            texts = [text for captions in chunk.captions for text in captions]
            found.chunks += 1
            found.rows += len(chunk.error)
            found.captions += len(texts)
            found.words += sum(len(text.split()) for text in texts)
            found.errors.update(error.partition(":")[0] for error in chunk.error if error)
            found.hashes.append(np.fromiter(map(hash, texts), np.int64, len(texts)))
            found.examples = found.examples or texts[:1]
    except DamagedError as error:
        found.damaged.append(str(error))
    return found
