"""What discovery passes over: files of other kinds, hidden ones, thumbnails."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence

from tips_ray import storage
from tips_ray.data.sources import folder, layouts, pairs, parquet, selection
from tips_ray.data.sources.columns import Columns
from tips_ray.data.sources.image_files import image_files, thumbnails
from tips_ray.data.sources.shard import Shard
from tips_ray.storage import StoredFile

SHOWN_KINDS = 5


def left_out(uri: str, shards: Sequence[Shard], columns: Columns) -> list[str]:
    """Sentences that count the files at `uri` that are no part of its shards; none where all are.

    Args:
        uri: of the source.
        shards: its shards.
        columns: its columns; a table may name thumbnails, which are then no others.
    """
    visible, everything = storage.list_files(uri), storage.list_files(uri, hidden=True)
    used = {place for shard in shards for place in _used(shard)}
    small = {place for shard in shards if shard.format == "folder" for place in _thumbnails(shard, columns)}
    small |= thumbnails(_images_of(visible), storage.resolved(uri)) if shards[0].format == "pairs" else set()
    named = _images_of(visible) if _names_images(shards[0], columns) else []  # all shards have the same columns
    used |= {file.uri for file in named}
    others = [file.uri for file in visible if file.uri not in used | small]
    odd = {file.uri for file in everything if file.is_no_file}
    hidden = {file.uri for file in everything} - {file.uri for file in visible} - odd
    counted = [
        (len(others), "files of other kinds are left out", _kinds(others)),
        (len(small), "thumbnails are left out", _folders(small, uri)),
        (len(odd), "names are left out, as pipes, sockets or devices and no regular files", _folders(odd, uri)),
        (len(hidden), "files are left out as hidden, kept by a system or written by tips_ray", _folders(hidden, uri)),
    ]
    return [f"{count:,} {words}: {which}" for count, words, which in counted if count]


def _used(shard: Shard) -> Iterable[str]:
    """Files that a shard consists of, or may consist of."""
    if shard.format == "pairs":
        return [file.uri for file in pairs.files_of(shard)]
    if shard.format == "folder":
        return [shard.path, *(file.uri for file in image_files(layouts.image_folder(shard.path)))]
    if shard.format == "selection":
        return [shard.path, selection.places_shard(shard.path).path, selection.lock_uri(shard.path)]
    return [shard.path]


def _names_images(shard: Shard, columns: Columns) -> bool:
    """Whether a table names its images, by paths that are not looked up here."""
    return shard.format == "parquet" and parquet.names_images(shard, columns)


def _thumbnails(shard: Shard, columns: Columns) -> set[str]:
    root = layouts.image_folder(shard.path)
    small = thumbnails(image_files(root), root)
    return small - folder.images_of(shard, columns) if small else small


def _images_of(files: Iterable[StoredFile]) -> list[StoredFile]:
    return [file for file in files if pairs.is_image(file)]


def _kinds(uris: Iterable[str]) -> str:
    """`8 .json, 1 without suffix`, the most frequent first."""
    suffixes = (os.path.splitext(uri)[1].lower() or "without suffix" for uri in uris)
    return _most_common(Counter(suffixes))


def _folders(uris: Iterable[str], uri: str) -> str:
    """`3 in @eaDir, 1 .x.tar`: files below `uri` by their folder, and hidden ones by their name."""
    root = storage.resolved(uri)
    places: Counter[str] = Counter()
    for place in uris:
        name = os.path.basename(place)
        below = os.path.dirname(place).removeprefix(root).strip("/")
        places[f"in {below}" if below and not name.startswith(".") else name] += 1
    return _most_common(places)


def _most_common(counts: Counter[str]) -> str:
    shown = counts.most_common(SHOWN_KINDS)
    rest = counts.total() - sum(count for _, count in shown)
    return ", ".join([*(f"{count:,} {what}" for what, count in shown), *([f"{rest:,} others"] if rest else [])])
