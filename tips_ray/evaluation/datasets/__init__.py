"""Loads data sets of the evaluation from their config."""

import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from tips_ray import storage
from tips_ray.config.evaluation_data import (
    Ade20kConfig,
    CaptionedFolderConfig,
    ClassFolderConfig,
    CocoCaptionsConfig,
    DatasetConfig,
    DocciConfig,
    GeometryFolderConfig,
    ImagenetConfig,
    KarpathyConfig,
    LabelledFolderConfig,
    NaviConfig,
    NyuBtsConfig,
    NyuGeonetConfig,
    NyuLabelledConfig,
    PascalContextConfig,
    ScenesConfig,
    UnedConfig,
    Voc2012Config,
)
from tips_ray.evaluation.datasets.ade20k import ade20k
from tips_ray.evaluation.datasets.captions import coco_captions, docci, karpathy
from tips_ray.evaluation.datasets.categories import class_folder
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.folders import captioned_folder, labelled_folder
from tips_ray.evaluation.datasets.geometry import geometry_folder
from tips_ray.evaluation.datasets.imagenet import imagenet
from tips_ray.evaluation.datasets.navi import navi
from tips_ray.evaluation.datasets.nyu import nyu_bts, nyu_geonet, nyu_labelled
from tips_ray.evaluation.datasets.pascal import pascal_context, voc2012
from tips_ray.evaluation.datasets.rendered import rendered
from tips_ray.evaluation.datasets.uned import uned

__all__ = ["Dataset", "Examples", "fingerprint_of_data", "load_dataset"]
_READERS: Mapping[type, Callable[[Any, int, bool], Dataset]] = {
    ScenesConfig: rendered,
    LabelledFolderConfig: labelled_folder,
    CaptionedFolderConfig: captioned_folder,
    GeometryFolderConfig: geometry_folder,
    ClassFolderConfig: class_folder,
    Voc2012Config: voc2012,
    PascalContextConfig: pascal_context,
    Ade20kConfig: ade20k,
    NyuLabelledConfig: nyu_labelled,
    NyuBtsConfig: nyu_bts,
    NyuGeonetConfig: nyu_geonet,
    NaviConfig: navi,
    ImagenetConfig: imagenet,
    KarpathyConfig: karpathy,
    CocoCaptionsConfig: coco_captions,
    DocciConfig: docci,
    UnedConfig: uned,
}


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
    """All images, squashed to `size_px`.

    Args:
        config: config of the data set.
        size_px: side of the images.
        with_train: whether to load the training images too; captions and UnED have none.

    Raises:
        ValueError: the data are missing or invalid; see the reader of each kind.
    """
    return _READERS[type(config)](config, size_px, with_train)
