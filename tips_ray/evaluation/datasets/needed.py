"""What a data set needs on disk, where its owners offer it, and what of it is missing. Nothing is downloaded."""

from collections.abc import Mapping
from typing import NamedTuple

from tips_ray import storage
from tips_ray.config.evaluation import SuiteConfig
from tips_ray.config.evaluation_data import (
    CaptionedFolderConfig,
    ClassFolderConfig,
    DatasetConfig,
    KarpathyConfig,
    PascalContextConfig,
    PublishedConfig,
    ScenesConfig,
    UnedConfig,
    Voc2012Config,
)
from tips_ray.evaluation.datasets.captions import COCO_2017, DESCRIPTIONS, IMAGES_OF
from tips_ray.evaluation.datasets.imagenet import DEVKIT, MAPPING, META
from tips_ray.evaluation.datasets.nyu import BTS_FOLDERS, BTS_LIST, LABELLED, NORMALS, SPLITS
from tips_ray.evaluation.datasets.pascal import AUGMENTED
from tips_ray.evaluation.datasets.uned import OWN_INDEX

Paths = tuple[str, ...]
"""Paths below a folder, any of which is enough; a path that ends with a slash is a folder with something in it."""
_VOC_LISTS, _CONTEXT_LISTS = "ImageSets/Segmentation", "ImageSets/SegmentationContext"
_NYU_LABELLED = "https://cs.nyu.edu/~fergus/datasets/nyu_depth_v2.html"
_PROBE3D = "https://github.com/mbanani/probe3d"
_KARPATHY = "https://cs.stanford.edu/people/karpathy/deepimagesent/"
OFFERED: Mapping[str, str] = {
    "voc2012": "http://host.robots.ox.ac.uk/pascal/VOC/voc2012/ (labels of SBD: voc_aug.py of mmsegmentation)",
    "pascal_context": "https://cs.stanford.edu/~roozbeh/pascal-context/ (labels: pascal_context.py of mmsegmentation)",
    "ade20k": "http://sceneparsing.csail.mit.edu (ADEChallengeData2016.zip)",
    "nyu_labelled": f"{_NYU_LABELLED} (labelled set and splits.mat)",
    "nyu_bts": "https://github.com/cleinc/bts (sync, official_splits and train_test_inputs)",
    "nyu_geonet": f"{_PROBE3D} (GeoNet's training set, all_normals.pklz) and {_NYU_LABELLED}",
    "navi": "https://github.com/google/navi (navi_v1)",
    "imagenet": "https://image-net.org/download.php or https://huggingface.co/datasets/ILSVRC/imagenet-1k",
    "docci": "https://google.github.io/docci/",
    "uned": "https://cmp.felk.cvut.cz/univ_emb/ (info_files.zip, and the page of each set)",
    "coco_captions": "https://cocodataset.org/#download (2017 Val images, 2017 Train/Val annotations)",
    "flickr30k": f"{_KARPATHY} and https://shannon.cs.illinois.edu/DenotationGraph/",
    "coco": f"{_KARPATHY} and https://cocodataset.org/#download (2014 Val images)",
}
_FIXED: Mapping[str, tuple[Paths, ...]] = {
    "ade20k": tuple((f"{kind}/{part}/",) for kind in ("images", "annotations") for part in ("training", "validation"))
    + (("objectInfo150.txt",),),
    "nyu_labelled": ((LABELLED,), (SPLITS,)),
    "nyu_geonet": (("train/",), (LABELLED,), (SPLITS,), (NORMALS,)),
    "navi": (("",),),
    "imagenet": (("val/", "data/"), (MAPPING, f"{DEVKIT}/{META}", "data/")),
    "docci": ((DESCRIPTIONS,), ("images/",)),
    "coco_captions": ((COCO_2017,), ("val2017/",)),
    "labelled_folder": (("val/images/",), ("val/labels/",)),
    "geometry_folder": (("val/images/",), ("val/depth/", "val/normals/")),
}


class DataState(NamedTuple):
    """What was found of a data set."""

    name: str
    """Its name in the suite."""
    folder: str | None
    """Where it is expected; None: nobody has said."""
    missing: tuple[Paths, ...]
    """What is missing below the folder; of alternatives, all."""
    offered: str
    """Where its owners offer it; empty for one's own folders."""


def data_states(suite: SuiteConfig) -> list[DataState]:
    """The state of each data set of the suite but rendered scenes."""
    found = []
    for name, config in suite.data.items():
        if not isinstance(config, ScenesConfig):
            folder = _expected(suite, config)
            missing = needed(config) if folder is None else _missing(folder, config)
            found.append(DataState(name, folder, missing, OFFERED.get(getattr(config, "name", config.kind), "")))
    return found


def with_folders(suite: SuiteConfig) -> SuiteConfig:
    """The suite with the folder of each data set that is complete below `data_root`."""
    data = dict(suite.data)
    for name, config in suite.data.items():
        if isinstance(config, PublishedConfig) and config.folder is None and suite.data_root is not None:
            folder = storage.join(suite.data_root, config.home)
            if not _missing(folder, config):
                data[name] = config.model_copy(update={"folder": folder})
    return suite.model_copy(update={"data": data})


def needed(config: DatasetConfig) -> tuple[Paths, ...]:
    """What a data set needs below its folder."""
    if isinstance(config, Voc2012Config):
        lists = [(f"{_VOC_LISTS}/{name}.txt",) for name in ("train", "val")]
        augmented = [tuple(f"{_VOC_LISTS}/{name}" for name in AUGMENTED), ("SegmentationClassAug/",)]
        return ("JPEGImages/",), ("SegmentationClass/",), *lists, *(augmented if config.train == "trainaug" else ())
    if isinstance(config, PascalContextConfig):
        lists = [(f"{_CONTEXT_LISTS}/{name}.txt",) for name in ("train", "val")]
        return ("JPEGImages/",), ("SegmentationClassContext/",), *lists
    if isinstance(config, KarpathyConfig):
        return (f"dataset_{config.name}.json",), tuple(f"{name}/" for name in IMAGES_OF[config.name])
    if isinstance(config, UnedConfig):
        files = [f"info_files/{name}/test.json" for name in config.sets]
        files += [f"info_files/{name}/index.json" for name in config.sets if name in OWN_INDEX]
        return *((file,) for file in files), ("images/",)
    if isinstance(config, CaptionedFolderConfig):
        return ("captions.csv",), ("images/",)
    if isinstance(config, ClassFolderConfig):
        return (("val/",),)
    if config.kind == "nyu_bts":
        lists = [BTS_LIST.format(part) for part in ("train", "test")]
        folders = [(f"{folder}/",) for folder in BTS_FOLDERS.values()]
        return *folders, *((name, f"train_test_inputs/{name}") for name in lists)
    return _FIXED[config.kind]


def _expected(suite: SuiteConfig, config: DatasetConfig) -> str | None:
    if isinstance(config, ScenesConfig) or config.folder is not None:
        return None if isinstance(config, ScenesConfig) else config.folder
    if isinstance(config, PublishedConfig) and suite.data_root is not None:
        return storage.join(suite.data_root, config.home)
    return None


def _missing(folder: str, config: DatasetConfig) -> tuple[Paths, ...]:
    return tuple(paths for paths in needed(config) if not any(_is_there(folder, path) for path in paths))


def _is_there(folder: str, path: str) -> bool:
    uri = storage.join(folder, path.rstrip("/")) if path else folder
    if path and not path.endswith("/"):
        return storage.exists(uri)
    return bool(storage.list_names(uri) or storage.list_folders(uri))
