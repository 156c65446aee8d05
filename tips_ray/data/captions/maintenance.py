"""Is every object of a store what its name says, and is every chunk there once?"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain

from tips_ray import storage
from tips_ray.captioning.chunks import CaptionedShard, CaptionObject, ChunkCaptions, DamagedError, damaged
from tips_ray.data.captions.store import THREADS, CaptionStore, covered, group_of
from tips_ray.storage import StorageError

SHOWN_CHUNKS = 5


def faults(store: CaptionStore, shards: Sequence[tuple[CaptionedShard, list[int]]] = ()) -> Iterator[str]:
    """A sentence with its cure for everything that is wrong.

    Args:
        store: every object of it is read.
        shards: those of an index, each with the rows of its chunks: then missing chunks and wrong row counts are
            faults too.
    """
    expected = {shard.name: (shard, rows) for shard, rows in shards}
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
