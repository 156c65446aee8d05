"""Rendered scenes as Parquet shards, for runs that need no other data."""

import io
import time
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from tips_ray import storage
from tips_ray.scenes import Scene, render_scenes

SHARD_ROWS, IMAGE_PX = 256, 112


def stored_scenes(source: str, seed: int, count: int, captions: Mapping[str, str]) -> float:
    """Write the first `count` scenes of a world below `source`, once; return scenes/s, 0 if they were there already.

    Args:
        source: folder, local or s3://.
        seed: seed of the world.
        count: number of scenes.
        captions: column name -> attribute of `Scene`.
    """
    started, marker = time.perf_counter(), f"{source}.complete"
    if storage.exists(marker):
        return 0.0
    for first in range(0, count, SHARD_ROWS):
        scenes = render_scenes(seed, range(first, min(first + SHARD_ROWS, count)), IMAGE_PX)
        storage.write_bytes(f"{source}/{first // SHARD_ROWS:03d}.parquet", _parquet(scenes, captions))
    storage.write_text(marker, "")
    return count / (time.perf_counter() - started)


def _parquet(scenes: list[Scene], captions: Mapping[str, str]) -> bytes:
    texts = {column: [getattr(scene, name) for scene in scenes] for column, name in captions.items()}
    buffer = io.BytesIO()
    table = pa.table({"image": [encoded(scene.image_HWC) for scene in scenes], **texts})
    pq.write_table(table, buffer, row_group_size=64, compression="none")
    return buffer.getvalue()


def encoded(image_HWC: Any) -> bytes:
    """The JPEG file of an image, as the shards hold it."""
    buffer = io.BytesIO()
    Image.fromarray(image_HWC).save(buffer, "JPEG", quality=92)
    return buffer.getvalue()
