"""Data sets of the evaluation, by their config."""

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
    """Changes with the files of a folder: names, sizes, and when each was last changed. Empty for rendered scenes.

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
        config: which.
        size_px: side of the images.
        with_train: whether the images to learn from are wanted.

    Raises:
        ValueError: what its reader says.
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
