"""Single chunks -> one object per complete group. A kill anywhere leaves a readable store; the next run finishes."""

from collections.abc import Iterable
from typing import NamedTuple

from tips_ray import storage
from tips_ray.captioning.chunks import CaptionedShard, object_bytes
from tips_ray.data.captions.store import CaptionStore, covered, group_of


class Compacted(NamedTuple):
    """What one run did."""

    groups: int
    """Objects made."""
    deleted: int
    """Objects of single chunks deleted."""


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
    """Told by any object of it; None where compaction by another has just removed all that were listed."""
    for span in spans:
        if found := store.open(store.uri(shard_name, *span)):
            return found.shard
    return None


def _create(store: CaptionStore, shard: CaptionedShard, start: int, stop: int) -> bool:
    chunks = [store.read(shard, chunk) for chunk in range(start, stop)]
    found = [chunk for chunk in chunks if chunk is not None]
    if len(found) < stop - start:  # somebody deletes objects by hand
        return False
    content = object_bytes(store.fingerprint, shard, start, found)
    return storage.create_bytes(store.uri(shard.name, start, stop), content)


def _delete(store: CaptionStore, shard: CaptionedShard, start: int, stop: int, singles: list[tuple[int, int]]) -> int:
    """Only once the group is there and every chunk of it decodes."""
    group = store.open(store.uri(shard.name, start, stop))
    if group is None:
        return 0
    group.chunks()
    for span in singles:
        storage.delete(store.uri(shard.name, *span))
    return len(singles)
