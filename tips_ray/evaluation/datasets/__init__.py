"""Loads data sets of the evaluation from their config."""

import hashlib

from tips_ray import storage
from tips_ray.config.evaluation import (
    CaptionedFolderConfig,
    ClassFolderConfig,
    DatasetConfig,
    GeometryFolderConfig,
    LabelledFolderConfig,
    ScenesConfig,
)
from tips_ray.evaluation.datasets.categories import class_folder
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.folders import captioned_folder, labelled_folder
from tips_ray.evaluation.datasets.geometry import geometry_folder
from tips_ray.evaluation.datasets.rendered import rendered

__all__ = ["Dataset", "Examples", "fingerprint_of_data", "load_dataset"]


def fingerprint_of_data(config: DatasetConfig) -> str:
    """Digest of a folder's files: names, sizes and versions (`etag`). Empty for rendered scenes or without a folder.

    Raises:
        StorageError: there is no such folder.
    """
    if isinstance(config, ScenesConfig) or config.folder is None:
        return ""
    digest = hashlib.sha256()
    for file in storage.list_files(config.folder):
        digest.update(f"{file.uri}\0{file.bytes}\0{file.etag}\n".encode())
    return digest.hexdigest()


def load_dataset(config: DatasetConfig, size_px: int, with_train: bool = True) -> Dataset:
    """All images, squashed to `size_px`, in memory.

    Args:
        config: config of the data set.
        size_px: side of the images.
        with_train: whether to load the training images too.

    Raises:
        ValueError: the data are missing or invalid; see the reader of each kind.
    """
    if isinstance(config, LabelledFolderConfig):
        return labelled_folder(config, size_px, with_train)
    if isinstance(config, CaptionedFolderConfig):
        return captioned_folder(config, size_px)
    if isinstance(config, GeometryFolderConfig):
        return geometry_folder(config, size_px, with_train)
    if isinstance(config, ClassFolderConfig):
        return class_folder(config, size_px, with_train)
    return rendered(config, size_px, with_train)
