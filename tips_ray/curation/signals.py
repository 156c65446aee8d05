"""What is known of every row before an encoder has seen it. N rows of a chunk."""

import hashlib
from collections.abc import Mapping
from typing import Any, ClassVar
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from tips_ray.config.curation import CurationConfig
from tips_ray.curation.hashes import hashes
from tips_ray.curation.language import votes
from tips_ray.data import sources
from tips_ray.data.chunk_files import ChunkFiles
from tips_ray.data.columns import SourceRow
from tips_ray.data.decode import BadImage, open_image, reduction_for
from tips_ray.data.index import Index
from tips_ray.data.sources.selection import captions_digest

HASHED_PX = 64
"""A JPEG is decoded at a fraction of its sides for its hash, its shorter side staying at least this."""
ROW_BYTES = 250
"""About what a row takes in a file."""
_PLACE = [("sample_id", pa.int64()), ("key", pa.string()), ("error", pa.string())]
_IMAGE = [("width", pa.int32()), ("height", pa.int32()), ("image_sha256", pa.binary(32))]
_IMAGE += [("hash", pa.uint64()), ("mirrored_hash", pa.uint64())]
_TEXT = [("captions_sha256", pa.binary(16)), ("caption_id", pa.uint64()), ("english_votes", pa.int8())]
_TEXT += [("domain", pa.string())]


class SignalFiles(ChunkFiles):
    """Files of signals."""

    kind: ClassVar[str] = "signals"
    manifest: ClassVar[str] = "signals.json"


def schema(config: CurationConfig) -> pa.Schema:
    """Columns of a file of signals; the config's `fields` are the last ones, each null where a row lacks it."""
    return pa.schema([*_PLACE, *_IMAGE, *_TEXT, *((f"field.{name}", pa.float64()) for name in config.fields)])


def signals(index: Index, number: int, config: CurationConfig) -> pa.Table:
    """The signals of a chunk, one row each, also for rows that cannot be read."""
    rows, place = index.read(number), index.chunk(number)
    shard, columns = index.shard(int(index.chunks.shard[number]))
    names = [*config.fields, *([config.url_field] if config.url_field else [])]
    fields = sources.read_fields(shard, place, columns, names) if names else [{}] * len(rows)
    found = [_signals(row, held, config) for row, held in zip(rows, fields, strict=True)]
    english_N = votes([row["web_caption"] for row in rows]).sum(1) if config.language else np.zeros(len(rows))
    table = [{**one, "english_votes": count} for one, count in zip(found, english_N.astype(int).tolist(), strict=True)]
    return pa.Table.from_pylist(table, schema(config))


def _signals(row: SourceRow, fields: Mapping[str, Any], config: CurationConfig) -> dict[str, Any]:
    caption = row["web_caption"]
    url = fields.get(config.url_field) if config.url_field else row["key"]
    return {
        "sample_id": row["sample_id"],
        "key": row["key"],
        **_image(row, config),
        "captions_sha256": captions_digest(row),
        "caption_id": caption_id(caption),
        "domain": domain(str(url or "")),
        **{f"field.{name}": _number(fields.get(name)) for name in config.fields},
    }


def _image(row: SourceRow, config: CurationConfig) -> dict[str, Any]:
    """Size and hashes of an image, or why there are none."""
    found = {"error": row["error"], "image_sha256": hashlib.sha256(row["image"]).digest()}
    if row["error"]:
        return found
    try:
        image = open_image(row["image"], config.max_image_bytes, config.max_image_pixels)
        pixels = image.pixels(reduction_for(min(image.height, image.width) / HASHED_PX))
    except BadImage as error:
        return {**found, "error": str(error)}
    plain, mirrored = hashes(pixels)
    size = {"width": image.width, "height": image.height}
    return {**found, **size, "hash": plain, "mirrored_hash": mirrored}


def caption_id(caption: str) -> int:
    """A number below 2**64 that is equal for captions that differ in case and spaces alone."""
    return int.from_bytes(hashlib.sha256(" ".join(caption.lower().split()).encode()).digest()[:8], "little")


NO_CAPTION = caption_id("")


def domain(url: str) -> str:
    """The host of a URL in lower case; empty where it is no URL."""
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _number(value: Any) -> float | None:
    """A number, or a text of one; None where there is none, or where it is no finite number."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
