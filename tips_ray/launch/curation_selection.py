"""Write what a curation has left: as places in the raw shards, or with its images in new shards."""

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tips_ray import storage
from tips_ray.config import SourceConfig
from tips_ray.config.curation import CurationConfig
from tips_ray.curation.pipeline import IMAGE_ROWS, NEW_COLUMNS, places_in_shard, shards_stream
from tips_ray.curation.selection import Part, SelectionWriter, file_name, parts, read_lock, read_parts
from tips_ray.curation.stages import Funnel
from tips_ray.data.index import Index
from tips_ray.data.index_folder import index_of
from tips_ray.data.sources.selection import LOCK, PLACED
from tips_ray.launch.curation_files import Tell, follow, tables

DIGITS = 16
OF_RESOURCES = {"out", "data_cpus", "actors", "cpus_per_actor", "gpus_per_actor", "memory_gb", "max_bad_fraction"}
"""Keys of the config that decide nothing."""


def write_selection(
    config: CurationConfig, out: str, index: Index, signal_files: list[str], funnel: Funnel, tell: Tell
) -> tuple[str, dict[str, Any]]:
    """Write the rows that the funnel has left, unless they are there; gives the folder and its lock.

    Args:
        config: thresholds, for the lock.
        out: folder of the curation.
        index: of the raw data.
        signal_files: in the order of the rows.
        funnel: after all stages.
        tell: gets progress lines while images are written to new shards.
    """
    digest, share = rows_digest(index, funnel), kept_share(index, funnel.kept_K)
    place = storage.join(out, "selections", digest)
    if storage.exists(storage.join(place, LOCK)):
        return place, read_lock(place)
    written, source = "shards" if share < config.rewrite_below else "positions", index.sources[0]
    made_from = {"source": source.uri, "format": source.format, "columns": source.columns._asdict()}
    made_from |= {"data": index.fingerprint, "written": written, "kept_share_of_chunks": round(share, 4)}
    made_from |= {"thresholds": config.model_dump(mode="json", exclude=OF_RESOURCES), "stages": funnel.counts()}
    if written == "positions":
        return place, write_positions(index, signal_files, funnel, place, made_from)
    positions = storage.join(out, "positions", digest)
    write_positions(index, signal_files, funnel, positions, {})
    shards = storage.join(out, "shards", digest)
    _write_shards(config, positions, shards, storage.join(out, "index"), tell)
    return place, _write_moved(positions, shards, place, made_from)


def write_positions(
    index: Index, signal_files: list[str], funnel: Funnel, place: str, made_from: Mapping[str, Any]
) -> dict[str, Any]:
    """Write the rows that are left as places in the raw shards, unless they are there; gives the lock."""
    if storage.exists(storage.join(place, LOCK)):
        return read_lock(place)
    identities = tables(signal_files, ["sample_id", "key", "image_sha256", "captions_sha256"])
    writer = SelectionWriter(place, index.sources[0].columns)
    for number, part in enumerate(parts(index, identities, funnel.is_kept_N)):
        writer.write(number, part)
    return writer.close(made_from)


def _write_shards(config: CurationConfig, positions: str, shards: str, index_folder: str, tell: Tell) -> None:
    """Write the images at `positions` to new shards, one for each file; those that are there stay."""
    data = config.model_copy(update={"chunk_rows": IMAGE_ROWS}).data_at(SourceConfig(uri=positions))
    index, there = index_of(data, index_folder), set(storage.list_names(shards))
    total = len(read_lock(positions)["files"])
    missing = [number for number in range(total) if f"{file_name(number)}.parquet" not in there]
    if missing:
        follow(shards_stream(config, index.uri, shards, missing), len(missing), "shards", tell)


def _write_moved(positions: str, shards: str, place: str, made_from: Mapping[str, Any]) -> dict[str, Any]:
    """Write the rows at `positions` once more, with places in the new shards; gives the lock."""
    writer = SelectionWriter(place, NEW_COLUMNS)
    for number, (name, part) in enumerate(read_parts(read_lock(positions))):
        file = storage.stat(storage.join(shards, f"{name}.parquet"))
        places = places_in_shard(part.rows.num_rows, file.uri, file.bytes, file.etag)
        writer.write(number, Part(part.rows, pa.table(places, schema=PLACED)))
    return writer.close(made_from)


def kept_share(index: Index, kept_K: NDArray[np.int64]) -> float:
    """Share of rows kept in the chunks that hold any: what is used of the bytes that are read."""
    read_C = np.unique(index.chunks_of(kept_K))
    return len(kept_K) / max(int(index.chunks.rows[read_C].sum()), 1)


def rows_digest(index: Index, funnel: Funnel) -> str:
    """Name of the rows that are left."""
    return hashlib.sha256(index.fingerprint.encode() + funnel.is_kept_N.tobytes()).hexdigest()[:DIGITS]
