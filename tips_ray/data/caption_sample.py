"""A few hundred rows of a source without their images, spread over its shards: examples, and what looks odd in them."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from tips_ray.data import sources
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index
from tips_ray.data.sources.caption_quality import described, doubts
from tips_ray.data.sources.texts import shown

SAMPLED_CHUNKS, ROWS_OF_CHUNK = 8, 64
"""Chunks of a source that are looked at, and rows of each."""
EXAMPLES = 3
Part = TypeVar("Part")


def sampled_rows(index: Index, source: int) -> list[SourceRow]:
    """Rows of a source's first and last chunk and of some between, in order; the same rows for the same index.

    Images are not read, but for the tars of an object store, of which whole blocks are.

    Raises:
        StorageError: they cannot be read.
    """
    source_C = index.shards["source"].to_numpy()[index.chunks.shard]
    chunks = _spread(np.flatnonzero(source_C == source).tolist(), SAMPLED_CHUNKS)
    return [row for chunk in chunks for row in _spread(_captions(index, chunk), ROWS_OF_CHUNK)]


def examples(rows: Sequence[SourceRow], first: SourceRow | None) -> list[SourceRow]:
    """`first`, and good rows with captions of the middle and the end of `rows`; fewer where there are no others."""
    good = [row for row in rows if not row["error"]]
    good = [row for row in good if row["web_caption"] or row["synthetic_captions"]] or good
    if first is None:
        return _spread(good, EXAMPLES)
    later = [row for row in good if row["sample_id"] > first["sample_id"]]
    return [first, *_spread(later, EXAMPLES)[1 - EXAMPLES :]]


def warnings(index: Index, rows: Sequence[SourceRow]) -> list[str]:
    """Sentences about captions that look like something else, web captions and synthetic ones apart."""
    good = [row for row in rows if not row["error"]]
    web = [(row["web_caption"], row) for row in good if row["web_caption"]]
    synthetic = [(text, row) for row in good for text in row["synthetic_captions"]]
    found = []
    for column, captions in (("web captions", web), ("synthetic captions", synthetic)):
        for doubt in doubts([text for text, _ in captions]):
            text, row = captions[doubt.which[0]]
            found.append(described(doubt, len(captions), column, text, place(index, row)))
    return found


def bad_rows(index: Index, rows: Sequence[SourceRow]) -> str:
    """A sentence that counts the bad rows among those that were read, with the commonest reason and a row of it.

    Empty where none is bad. Text after a colon in a reason is about its row alone.
    """
    bad = [row for row in rows if row["error"]]
    if not bad:
        return ""
    kinds = Counter(row["error"].partition(":")[0] for row in bad)
    kind, count = kinds.most_common(1)[0]
    row = next(row for row in bad if row["error"].partition(":")[0] == kind)
    others = f"; {len(bad) - count} for other reasons" * (count < len(bad))
    return f"{len(bad)} of {len(rows)} rows that were looked at are bad: {row['error']} ({place(index, row)}){others}"


def place(index: Index, row: SourceRow) -> str:
    """The key of a row, below its shard's name where the source has several."""
    shard, _ = index.sample(row["sample_id"])
    folder, name = os.path.split(shard.path)
    if row["key"].startswith(shard.path):  # of Parquet: path#row
        return row["key"].removeprefix(f"{folder}/")
    return row["key"] if len(index.shards) == len(index.sources) else f"{name}/{row['key']}"


def described_row(index: Index, row: SourceRow) -> str:
    """An example in one line: where it is, its size if the image was read, and its captions, shortened."""
    size = f"{len(row['image'])} bytes; " * bool(row["image"])
    first, *others = [shown(text) for text in row["synthetic_captions"]] or ["none"]
    more = f" and {len(others)} more" * bool(others)
    return f"{place(index, row)}: {size}web {shown(row['web_caption'])}; synthetic {first}{more}"


def _captions(index: Index, number: int) -> list[SourceRow]:
    shard, columns = index.shard(int(index.chunks.shard[number]))
    return sources.read_captions(shard, index.chunk(number), columns)


def _spread(parts: Sequence[Part], most: int) -> list[Part]:
    """At most `most` of the parts, the first and the last among them, at even distances."""
    places = np.linspace(0, len(parts) - 1, min(most, len(parts)))
    return [parts[place] for place in sorted(set(places.round().astype(int).tolist()))] if len(parts) else []
