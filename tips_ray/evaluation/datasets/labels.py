"""Label maps: images with one class per pixel, local or s3://. H W pixels."""

import io
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tips_ray import storage
from tips_ray.evaluation.datasets.examples import Examples
from tips_ray.evaluation.datasets.images import FoundImage, ImageStack, ahead, read_image

PNG = b"\x89PNG\r\n\x1a\n"
"""First bytes of a PNG; bits per sample and kind of color stand in bytes 24 and 25."""
VOID = 255
"""Label of pixels that do not count, in all published layouts here."""


class LabelRule(NamedTuple):
    """Which labels a map may hold."""

    num_classes: int
    ignore_index: int | None
    """Label of pixels that do not count."""
    cure: str = "the data set has {} classes: take the files of its owners, unconverted"
    """What to do about another label; {} stands for the number of classes."""
    zero_is_void: bool = False
    """Labels of the file shift down by one, and 0 becomes `ignore_index`: `reduce_zero_label` of mmsegmentation."""


def labelled(
    pairs: Iterable[tuple[str, str | None]], rule: LabelRule, size_px: int, folder: str, left_out: Counter[str]
) -> Examples:
    """Read images with their label maps, given as pairs of URIs; without a map, an image is counted and left out.

    Raises:
        ValueError: a map is wrong, or no image can be used; the message names `folder`.
    """

    def read(pair: tuple[str, str | None]) -> tuple[FoundImage | None, Tensor | None, Counter[str]]:
        counts = Counter[str]()
        image = None if pair[1] is None else read_image(pair[0], size_px, counts)
        try:
            return image, None if image is None or pair[1] is None else label_map(pair[1], rule), counts
        except storage.NotFoundError:
            return None, None, counts

    images, labels = ImageStack(size_px), []
    for image, labels_HW, counts in ahead(read, pairs):
        left_out.update(counts)
        if image is None or labels_HW is None:
            left_out.update({"no labels": 1} if not counts else {})
        elif tuple(labels_HW.shape) != image.size:
            left_out["labels of another size"] += 1
        else:
            images.append(image.pixels_SS3)
            labels.append(labels_HW)
    return Examples(images.images(folder, left_out), labels)


def label_map(uri: str, rule: LabelRule) -> Tensor:
    """Classes [H, W], uint8 or int32. A wrong map raises and is not left out: fewer images would give other scores."""
    content = storage.read_bytes(uri)
    try:
        with Image.open(io.BytesIO(content)) as file:
            classes = np.array(file) // _gray_step(content)
    except OSError as error:
        raise ValueError(f"{uri} is no label map: {error}") from error
    if classes.ndim != 2 or classes.dtype.kind not in "ui":
        raise ValueError(f"{uri} has shape {classes.shape} {classes.dtype}; a label map has one class per pixel")
    if rule.zero_is_void:
        classes = np.where(classes == 0, VOID, classes.astype(np.int32) - 1)
    wrong = classes[(classes < 0) | (classes >= rule.num_classes) & (classes != rule.ignore_index)]
    if wrong.size:
        raise ValueError(f"{uri} has class {wrong[0]}, and {rule.cure.format(rule.num_classes)}")
    return torch.from_numpy(classes.astype(np.uint8 if classes.max(initial=0) <= VOID else np.int32))


def _gray_step(content: bytes) -> np.uint8:
    """Distance of two neighbouring classes as Pillow reads them: it spreads gray of 2 or 4 bits in a PNG over 0..255.

    Dividing by it also makes 0 and 1 of the truth values as which Pillow reads one bit.
    """
    bits, color = (content[24], content[25]) if content[:8] == PNG else (8, 0)
    return np.uint8({2: 85, 4: 17}.get(bits, 1) if color == 0 else 1)
