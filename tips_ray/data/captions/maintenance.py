"""Maintenance of a caption store: selection of captioners, faults, statistics, compaction."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import NamedTuple

import numpy as np

from tips_ray import storage
from tips_ray.data.captions.join import captioned_shard
from tips_ray.data.captions.store import (
    THREADS,
    CaptionedShard,
    CaptionObject,
    CaptionStore,
    ChunkCaptions,
    DamagedError,
    captioners,
    covered,
    damaged,
    group_of,
    imported_store,
    object_bytes,
)
from tips_ray.data.index import Index
from tips_ray.storage import StorageError

SHOWN_CHUNKS, SHOWN_EXAMPLES = 5, 5
COMPACTION_THREADS = 16
"""Shards that are compacted at the same time."""
FEWEST_DIGITS = 6
"""A hexadecimal word of at least so many digits is the beginning of a fingerprint and not a name."""


def chosen_stores(uri: str, wanted: str | None) -> list[CaptionStore]:
    """The captions of every captioner at `uri`, or of those whose fingerprint begins with `wanted`.

    Raises:
        ValueError: there are none.
    """
    stores = captioners(uri)
    found = [store for store in stores if store.fingerprint.startswith(wanted or "")]
    if not found:
        there = ", ".join(store.fingerprint for store in stores) or "none"
        raise ValueError(f"{uri}: there are no captions{f' of captioner {wanted}' if wanted else ''}; it has {there}")
    return found


def only_store(uri: str, wanted: str | None) -> CaptionStore:
    """The captions of the one captioner that `chosen_stores` finds.

    Raises:
        ValueError: there is none, or there are several.
    """
    stores = chosen_stores(uri, wanted)
    if len(stores) > 1:
        there = ", ".join(store.fingerprint for store in stores)
        raise ValueError(f"{uri}: there are captions of several captioners ({there}); say which with --captioner")
    return stores[0]


def import_target(uri: str, wanted: str | None) -> CaptionStore:
    """The store for captions of a file: that of their captioner, or of a name for those of another program.

    Raises:
        ValueError: no captioner is meant, or several are.
    """
    if wanted is None:
        return only_store(uri, None)
    is_fingerprint = len(wanted) >= FEWEST_DIGITS and set(wanted) <= set("0123456789abcdef")
    if is_fingerprint or any(store.fingerprint.startswith(wanted) for store in captioners(uri)):
        return only_store(uri, wanted)
    store = imported_store(uri, wanted)
    store.describe({"decides": {"imported": wanted}, "config": {"model": wanted}})
    return store


def shards_of(index: Index) -> list[tuple[CaptionedShard, list[int]]]:
    """Each shard of an index as the store knows it, and the rows of its chunks."""
    firsts = np.searchsorted(index.chunks.shard, range(index.shards.num_rows + 1))
    rows = [index.chunks.rows[first:last].tolist() for first, last in pairwise(firsts)]
    return [(captioned_shard(index, number), of_shard) for number, of_shard in enumerate(rows)]


def faults(store: CaptionStore, shards: Sequence[tuple[CaptionedShard, list[int]]] = ()) -> Iterator[str]:
    """A sentence with its cure for everything that is wrong.

    Args:
        store: every object of it is read.
        shards: those of an index, each with the rows of its chunks: then missing chunks and wrong row counts are
            faults too.
    """
    expected = {store.known(shard).name: (shard, rows) for shard, rows in shards}
    names = sorted({*store.shard_names(), *expected})
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _shard_faults(store, name, *expected.get(name, (None, []))), names)
        yield from chain.from_iterable(found)


def _shard_faults(store: CaptionStore, name: str, shard: CaptionedShard | None, rows: list[int]) -> list[str]:
    names, found, seen = store.names(name), [], set()
    spans = covered(names)
    for other in set(names) - set(spans.values()):
        found.append(f"{storage.join(store.folder, name, other)}: this is no name of a caption object; delete it")
    for span in sorted(spans, key=lambda span: (span[0], -span[1])):
        uri = store.uri(name, *span)
        try:
            if opened := store.open(uri):
                found += _object_faults(opened, rows)
        except (DamagedError, StorageError) as error:
            found.append(str(error))
        if seen & set(range(*span)):
            found.append(f"{uri}: its chunks are in another object too; run tips-ray captions compact")
        seen |= set(range(*span))
    return found + (_missing(store, shard) if shard else [])


def _object_faults(opened: CaptionObject, rows: list[int]) -> list[str]:
    if (opened.start, opened.stop) != group_of(opened.shard, opened.start) and opened.stop - opened.start > 1:
        return [str(damaged(opened.uri, "it is neither a chunk nor a group of chunks"))]
    for number in range(opened.start, opened.stop):
        fault = _chunk_fault(opened.chunk(number))
        if rows and not fault:
            fault = _place_fault(opened.chunk(number), number, rows)
        if fault:
            return [str(damaged(opened.uri, f"chunk {number} {fault}"))]
    return []


def _chunk_fault(chunk: ChunkCaptions) -> str:
    rows = zip(chunk.captions, chunk.error, strict=True)
    if any(bool(captions) == bool(error) for captions, error in rows):
        return "has a row with neither captions nor an error, or with both"
    return ""


def _place_fault(chunk: ChunkCaptions, number: int, rows: list[int]) -> str:
    if number >= len(rows):
        return f"is beyond the {len(rows)} chunks of its shard in the index"
    first = sum(rows[:number])
    if (chunk.row, len(chunk.error)) != (first, rows[number]):
        found = f"{len(chunk.error)} rows from row {chunk.row} on"
        return f"holds {found}; in the index it has {rows[number]} from row {first} on"
    return ""


def _missing(store: CaptionStore, shard: CaptionedShard) -> list[str]:
    present = store.present(shard)
    lost = [chunk for chunk in range(shard.chunks) if chunk not in present]
    if not lost:
        return []
    shown = ", ".join(map(str, lost[:SHOWN_CHUNKS])) + (", ..." if len(lost) > SHOWN_CHUNKS else "")
    return [f"{shard.path}: {len(lost)} of {shard.chunks} chunks have no captions ({shown}); run tips-ray caption"]


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
    def mean_words(self) -> float:
        """Mean number of words of a caption."""
        return self.words / max(self.captions, 1)

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
    """Statistics over all shards; every object is read once."""
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


class Compacted(NamedTuple):
    """What compaction of a shard did."""

    groups: int
    """Objects made."""
    deleted: int
    """Objects of single chunks deleted."""


def compact_all(store: CaptionStore) -> list[Compacted]:
    """Compact every shard, many at a time; returns what was done to each.

    Raises:
        DamagedError: an object cannot be read.
    """
    with ThreadPoolExecutor(COMPACTION_THREADS) as pool:
        return list(pool.map(lambda name: compact(store, name), store.shard_names()))


def compact(store: CaptionStore, shard_name: str) -> Compacted:
    """Compact one shard; incomplete groups stay as they are. Any number of these may run beside readers and writers.

    Raises:
        DamagedError: an object cannot be read; nothing of its group is deleted.
    """
    spans = covered(store.names(shard_name))
    shard = _shard(store, shard_name, spans)
    if shard is None:
        return Compacted(0, 0)
    groups, deleted = 0, 0
    for start, stop in sorted({group_of(shard, first) for first, _ in spans}):
        singles = [span for span in spans if start <= span[0] and span[1] <= stop and span != (start, stop)]
        if (start, stop) not in spans and len(singles) == stop - start:
            groups += _create(store, shard, start, stop)
        if singles:
            deleted += _delete(store, shard, start, stop, singles)
    return Compacted(groups, deleted)


def _shard(store: CaptionStore, shard_name: str, spans: Iterable[tuple[int, int]]) -> CaptionedShard | None:
    """The shard as one of its objects describes it; None where another compaction has just removed all listed ones."""
    for span in spans:
        if found := store.open(store.uri(shard_name, *span)):
            return found.shard
    return None


def _create(store: CaptionStore, shard: CaptionedShard, start: int, stop: int) -> bool:
    chunks = [store.read(shard, chunk) for chunk in range(start, stop)]
    found = [chunk for chunk in chunks if chunk is not None]
    if len(found) < stop - start:  # objects were deleted by hand
        return False
    content = object_bytes(store.fingerprint, shard, start, found)
    return storage.create_bytes(store.uri(shard.name, start, stop), content)


def _delete(store: CaptionStore, shard: CaptionedShard, start: int, stop: int, singles: list[tuple[int, int]]) -> int:
    """Delete objects of single chunks, once their group is there and every chunk of it decodes."""
    group = store.open(store.uri(shard.name, start, stop))
    if group is None:
        return 0
    group.chunks()
    for span in singles:
        storage.delete(store.uri(shard.name, *span))
    return len(singles)
