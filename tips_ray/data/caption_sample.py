"""A few hundred rows of a source without their images, spread over its shards: examples, and what is odd in them."""

import os
from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

from tips_ray.config import CaptionsConfig
from tips_ray.data import sources
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index
from tips_ray.data.sources.caption_quality import described, doubts
from tips_ray.data.sources.columns import Columns
from tips_ray.data.sources.texts import shown

SAMPLED_CHUNKS, ROWS_OF_CHUNK = 8, 64
"""Chunks of a source that are looked at, and rows of each."""
EXAMPLES = 3
STAND_INS = {
    "invalid": "they are bad rows; captions.missing=other uses the other caption for both, =empty an empty text",
    "empty": "an empty text stands for it (captions.missing)",
    "other": "the other caption stands for it (captions.missing)",
}
BARE = "they are bad rows; give them some, or move images that are not meant (masks) out of the source"
Part = TypeVar("Part")


def sampled_rows(index: Index, source: int) -> list[SourceRow]:
    """Rows of a source's first and last chunk and of some between, in order; the same rows for the same index.

    Images are not read, but for the tars of an object store, of which whole blocks are.

    Raises:
        StorageError: they cannot be read.
    """
    return _sampled(index, source, index.sources[source].columns)


def _sampled(index: Index, source: int, columns: Columns) -> list[SourceRow]:
    source_C = index.shards["source"].to_numpy()[index.chunks.shard]
    chunks = _spread(np.flatnonzero(source_C == source).tolist(), SAMPLED_CHUNKS)
    return [row for chunk in chunks for row in _spread(_captions(index, chunk, columns), ROWS_OF_CHUNK)]


def joined(*parts: Sequence[SourceRow]) -> list[SourceRow]:
    """The rows of several readings, each once."""
    return list({row["sample_id"]: row for part in parts for row in part}.values())


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


def gaps(index: Index, rows: Sequence[SourceRow], captions: CaptionsConfig) -> list[str]:
    """Sentences that count the rows without a caption, with an example and what becomes of them.

    Synthetic captions count where the data hold them; those of a captioner come later.
    """
    good = [row for row in rows if not row["error"]]
    is_column = captions.source == "column"
    has_none = [row for row in good if not row["web_caption"] and not row["synthetic_captions"]]
    bare = has_none if is_column and captions.missing == "other" else []
    others = [row for row in good if row["web_caption"] or row["synthetic_captions"]] if bare else good
    without_web = [row for row in others if not row["web_caption"]]
    without_made = [row for row in others if is_column and not row["synthetic_captions"]]
    found = [(bare, "captions at all", BARE), (without_web, "web caption", STAND_INS[captions.missing])]
    found += [(without_made, "synthetic caption", STAND_INS[captions.missing])]
    return [
        f"{len(gap)} of {len(rows)} rows that were looked at have no {what}, e.g. {place(index, gap[0])}: {outcome}"
        for gap, what, outcome in found
        if gap
    ]


def unused_captions(index: Index, source: int) -> str:
    """A sentence about further web captions of an image, which are not used beside a column of synthetic ones.

    Empty where all are used. The sample is read once more for it.
    """
    columns = index.sources[source].columns
    if not (columns.web_caption and columns.synthetic_captions):
        return ""
    rows = _sampled(index, source, columns._replace(synthetic_captions=()))
    having = [row for row in rows if row["synthetic_captions"]]
    if not having:
        return ""
    return (
        f"{len(having)} of {len(rows)} rows that were looked at have more than one web caption, and all but the first "
        f"are left out, because {', '.join(columns.synthetic_captions)} holds the synthetic ones, e.g. "
        f"{shown(having[0]['synthetic_captions'][0])} of {place(index, having[0])}; columns.synthetic_captions: [] "
        "uses them as synthetic captions instead"
    )


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


def _captions(index: Index, number: int, columns: Columns) -> list[SourceRow]:
    shard, _ = index.shard(int(index.chunks.shard[number]))
    return sources.read_captions(shard, index.chunk(number), columns)


def _spread(parts: Sequence[Part], most: int) -> list[Part]:
    """At most `most` of the parts, the first and the last among them, at even distances."""
    places = np.linspace(0, len(parts) - 1, min(most, len(parts)))
    return [parts[place] for place in sorted(set(places.round().astype(int).tolist()))] if len(parts) else []
