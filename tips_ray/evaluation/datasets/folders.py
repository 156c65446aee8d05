"""Data sets in folders, local or s3://. Unusable images are counted and left out."""

import io
from collections import Counter

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tips_ray import storage
from tips_ray.config.evaluation import CaptionedFolderConfig, LabelledFolderConfig
from tips_ray.data.sources.folder import table_header, table_lines
from tips_ray.data.sources.texts import NoCaptionError, texts
from tips_ray.errors import listed
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import by_stem, read_image, read_parts, stacked

TABLE = "captions.csv"
PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG; bits per sample and kind of color stand in bytes 24 and 25."""


def labelled_folder(config: LabelledFolderConfig, size_px: int, with_train: bool) -> Dataset:
    """Read `train` and `val`, each with `images/NAME.jpg` and `labels/NAME.png`.

    Raises:
        ValueError: a folder is missing or has no usable image, or a label map is no map of these classes.
    """
    assert config.folder is not None

    def part(uri: str, left_out: Counter[str]) -> Examples:
        return _labelled(uri, config, size_px, left_out)

    train, test, left_out = read_parts(config.folder, part, with_train)
    return Dataset(test, train, config.class_names, config.ignore_index, left_out=left_out)


def captioned_folder(config: CaptionedFolderConfig, size_px: int) -> Dataset:
    """Read `images` and `captions.csv`; images without a caption are counted but not read.

    Raises:
        ValueError: the table is missing or has other columns, or there is no usable image.
    """
    assert config.folder is not None
    named = _captions(storage.join(config.folder, TABLE))
    uncaptioned = set(storage.list_names(storage.join(config.folder, "images"))) - named.keys()
    left_out = +Counter({"no caption": len(uncaptioned)})
    images, captions = [], []
    for name, its_captions in named.items():
        image = read_image(storage.join(config.folder, "images", name), size_px, left_out)
        if image is not None:
            images.append(image.pixels_SS3)
            captions.append(its_captions)
    images_NSS3 = stacked(images, config.folder, left_out)
    return Dataset(Examples(images_NSS3, captions={"caption": captions}), left_out=left_out)


def _labelled(folder: str, config: LabelledFolderConfig, size_px: int, left_out: Counter[str]) -> Examples:
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
        labels_HW = _label_map(label, config)
        if tuple(labels_HW.shape) != image.size:
            left_out["labels of another size"] += 1
            continue
        images.append(image.pixels_SS3)
        labels.append(labels_HW)
    _require_foreground(folder, labels, config)
    return Examples(stacked(images, folder, left_out), labels)


def _require_foreground(folder: str, labels: list[Tensor], config: LabelledFolderConfig) -> None:
    """Require that the ignored label is not all that there is beside one class, as in masks of 0 and 255.

    Raises:
        ValueError: it is, and several classes have names.
    """
    found = {label for labels_HW in labels for label in labels_HW.unique().tolist()}
    if config.ignore_index in found and len(found) == 2 and len(config.class_names) > 1:
        (counted,) = found - {config.ignore_index}
        raise ValueError(
            f"{folder}/labels: every pixel is {counted} or {config.ignore_index}, and ignore_index "
            f"({config.ignore_index}) does not count, so that one class alone would be left; write masks with the "
            "number of a class instead of it, or leave ignore_index out and give each label a name"
        )


def _label_map(uri: str, config: LabelledFolderConfig) -> Tensor:
    """Read a label map. A wrong one raises and is not left out: scores on fewer images would not be comparable."""
    content = storage.read_bytes(uri)
    try:
        with Image.open(io.BytesIO(content)) as file:
            classes = np.array(file) // _gray_step(content)
    except OSError as error:
        raise ValueError(f"{uri} is no label map: {error}") from error
    if classes.ndim != 2 or classes.dtype.kind not in "ui":
        raise ValueError(f"{uri} has shape {classes.shape} {classes.dtype}; a label map has one class per pixel")
    wrong = classes[(classes < 0) | (classes >= len(config.class_names)) & (classes != config.ignore_index)]
    if wrong.size:
        raise ValueError(
            f"{uri} has class {wrong[0]}, and there are {len(config.class_names)} class_names: name it, or say which "
            f"label does not count (ignore_index is {config.ignore_index}); a mask of 0 and 255 must be written as 0 "
            "and 1"
        )
    return torch.from_numpy(classes if classes.dtype == np.uint8 else classes.astype(np.int32))


def _gray_step(content: bytes) -> np.uint8:
    """Distance of two neighbouring classes as Pillow reads them: it spreads gray of 2 or 4 bits in a PNG over 0..255.

    Dividing by it also makes 0 and 1 of the truth values as which Pillow reads one bit.
    """
    bits, color = (content[24], content[25]) if content[:8] == PNG else (8, 0)
    return np.uint8({2: 85, 4: 17}.get(bits, 1) if color == 0 else 1)


def _captions(uri: str) -> dict[str, list[str]]:
    """Captions by image, in the order of the table; empty ones are ignored."""
    columns = table_header(uri)
    if not {"image", "caption"} <= set(columns):
        raise ValueError(f"{uri} has the columns {listed(columns)}; it needs image and caption")
    captions: dict[str, list[str]] = {}
    for line in table_lines(uri):
        name = str(line["image"] or "").strip()
        try:
            found = texts(line["caption"])
        except NoCaptionError as error:
            raise ValueError(f"{uri}: {name}: {error}; correct it") from None
        if name and found:
            captions.setdefault(name, []).extend(found)
    return captions
