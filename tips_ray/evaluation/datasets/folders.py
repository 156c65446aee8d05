"""Data sets that lie in folders, local or s3://. An image that cannot be used is counted and left out."""

import csv
import io
from collections import Counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tips_ray import storage
from tips_ray.config.evaluation import CaptionedFolderConfig, LabelledFolderConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import by_stem, read_image, require_images

TABLE = "captions.csv"


def labelled_folder(config: LabelledFolderConfig, size_px: int) -> Dataset:
    """`train` and `val`, each with `images/NAME.jpg` and `labels/NAME.png`.

    Raises:
        ValueError: a folder is missing or has no image that can be used, or a label map is no map of classes.
    """
    assert config.folder is not None
    left_out: Counter[str] = Counter()
    train, test = (_labelled(storage.join(config.folder, part), size_px, left_out) for part in ("train", "val"))
    return Dataset(test, train, config.class_names, config.ignore_index, left_out=left_out)


def captioned_folder(config: CaptionedFolderConfig, size_px: int) -> Dataset:
    """`images` and `captions.csv`; images without a caption are not looked at.

    Raises:
        ValueError: the table is missing or has other columns, or there is no image that can be used.
    """
    assert config.folder is not None
    left_out: Counter[str] = Counter()
    images, captions = [], []
    for name, texts in _captions(storage.join(config.folder, TABLE)).items():
        image = read_image(storage.join(config.folder, "images", name), size_px, left_out)
        if image is not None:
            images.append(image.pixels_SS3)
            captions.append(texts)
    require_images(images, config.folder, left_out)
    return Dataset(Examples(torch.stack(images), captions={"caption": captions}), left_out=left_out)


def _labelled(folder: str, size_px: int, left_out: Counter[str]) -> Examples:
    with_labels = by_stem(storage.join(folder, "labels"))
    images, labels = [], []
    for name in storage.list_names(storage.join(folder, "images")):
        label = with_labels.get(name.rsplit(".", 1)[0])
        if label is None:
            left_out["no labels"] += 1
            continue
        image = read_image(storage.join(folder, "images", name), size_px, left_out)
        if image is None:
            continue
        labels_HW = _label_map(label)
        if tuple(labels_HW.shape) != image.size:
            left_out["labels of another size"] += 1
            continue
        images.append(image.pixels_SS3)
        labels.append(labels_HW)
    require_images(images, folder, left_out)
    return Examples(torch.stack(images), labels)


def _label_map(uri: str) -> Tensor:
    """A wrong map is an error and not left out: scores on fewer images are no longer comparable."""
    try:
        with Image.open(io.BytesIO(storage.read_bytes(uri))) as file:
            classes = np.array(file)
    except OSError as error:
        raise ValueError(f"{uri} is no label map: {error}") from error
    if classes.ndim != 2 or classes.dtype.kind not in "ui":
        raise ValueError(f"{uri} has shape {classes.shape} {classes.dtype}; a label map has one class per pixel")
    return torch.from_numpy(classes if classes.dtype == np.uint8 else classes.astype(np.int32))


def _captions(uri: str) -> dict[str, list[str]]:
    """Captions by image, in the order of the table; empty ones say nothing."""
    table = csv.DictReader(io.StringIO(storage.read_text(uri), newline=""))
    if not {"image", "caption"} <= set(table.fieldnames or ()):
        raise ValueError(f"{uri} has the columns {', '.join(table.fieldnames or ())}; it needs image and caption")
    captions: dict[str, list[str]] = {}
    for line in table:
        text = (line["caption"] or "").strip()
        if text:
            captions.setdefault(line["image"], []).append(text)
    return captions
