"""Curated and sealed sets: images without captions, as sources."""

import pyarrow as pa

from tips_ray import storage
from tips_ray.config import ColumnsConfig, SourceConfig
from tips_ray.config.curation import SetConfig
from tips_ray.data.sources.image_files import IMAGE_SUFFIXES
from tips_ray.data.tables import parquet_bytes
from tips_ray.storage import StorageError

PACKED = (".tar", ".parquet", ".pq")


def set_source(config: SetConfig, folder: str) -> SourceConfig:
    """A source of the images of a set. Tars and Parquet files are one; of image files a list is written.

    Args:
        config: where the images are.
        folder: for the list.

    Raises:
        ValueError: there are no images.
    """
    columns = ColumnsConfig(web_caption="", synthetic_captions=(), **config.columns)
    uris = [file.uri for file in storage.list_files(config.uri)]
    if any(uri.lower().endswith(PACKED) for uri in uris):
        return SourceConfig(uri=config.uri, columns=columns)
    images = [uri for uri in uris if uri.lower().endswith(IMAGE_SUFFIXES)]
    if not images:
        raise StorageError(f"{config.uri}: there are no images, tars or Parquet files in it; name a folder with some")
    place = storage.join(storage.resolved(folder), "images.parquet")
    content = parquet_bytes(pa.table({"key": images, "image": images}))
    if not storage.exists(place) or storage.read_bytes(place) != content:  # a new file would be indexed again
        storage.write_bytes(place, content)
    return SourceConfig(uri=place, columns=columns.model_copy(update={"image": "image", "key": "key"}))
