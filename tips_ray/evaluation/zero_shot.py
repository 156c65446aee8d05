"""Zero-shot classes: whole images by an embedding, pixels by the values trick. N images, L patches, C classes.

b batch images, S side of an image, G patches along it, E width of embeddings.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.evaluation.classification import accuracy
from tips_ray.evaluation.datasets import Examples
from tips_ray.evaluation.encoders import Encoder, in_unit_range
from tips_ray.evaluation.features import Encoding
from tips_ray.evaluation.segmentation import Classes, Segmentation, classes_of, miou

COSINES = "cosines"


def class_embeddings(
    embed: Callable[[Sequence[str]], Tensor], names: Sequence[str], templates: Sequence[str]
) -> Tensor:
    """Unit-norm mean over templates of each class's texts, [C, E].

    Args:
        embed: texts -> unit-norm embeddings.
        names: names of the classes.
        templates: texts with a `{}` where the name goes.

    Raises:
        ValueError: a template has no `{}`.
    """
    wrong = [template for template in templates if "{}" not in template]
    if wrong:
        raise ValueError(f"template {wrong[0]!r} must have a {{}} where the name of the class goes")
    texts = [template.replace("{}", name) for name in names for template in templates]
    return F.normalize(embed(texts).unflatten(0, (len(names), -1)).mean(dim=1), dim=-1)


def zero_shot_accuracy(image_NE: Tensor, classes_CE: Tensor, labels_N: Tensor) -> dict[str, float]:
    """`accuracy` of the class with the largest cosine."""
    return {"accuracy": accuracy(F.normalize(image_NE, dim=-1) @ classes_CE.T, labels_N)}


def zero_shot_segmentation(
    encoding: Encoding, examples: Examples, classes_CE: Tensor, classes: Classes, windows: int
) -> Segmentation:
    """`miou` of the class with the largest cosine per pixel; cosines are bilinearly upsampled.

    Args:
        encoding: passes images through an encoder whose patches can be compared with texts.
        examples: images of `windowed_size_px`, and labels.
        classes_CE: unit-norm embeddings of the classes.
        classes: number of classes, and the label that does not count.
        windows: windows along each side; cosines are averaged where windows overlap.

    Source: the values trick of TIPSv2, arXiv:2604.12012, for the patches.
    """
    predictions, labels = [], iter(examples.labels)
    for found in encoding(partial(_cosines, classes_CE=classes_CE, windows=windows), examples.images_NSS3):
        pairs = zip(found[COSINES], labels, strict=False)  # the next batch continues in `labels`
        predictions += [classes_of(one_GGC.flatten(0, 1), like, classes) for one_GGC, like in pairs]
    return Segmentation({"miou": miou(predictions, examples.labels, classes)}, predictions)


def windowed_size_px(encoder: Encoder, windows: int) -> int:
    """Side of images that hold `windows` windows in a row, each sharing half with its neighbour."""
    return encoder.patch_size_px * (_stride(encoder) * (windows - 1) + encoder.grid)


def _cosines(encoder: Encoder, images_bSS3: Tensor, classes_CE: Tensor, windows: int) -> dict[str, Tensor]:
    """Cosines [b, G, G, C] of images with G patches along a side; a window has `encoder.grid` of them."""
    patch, grid, stride = encoder.patch_size_px, encoder.grid, _stride(encoder)
    side = images_bSS3.shape[1] // patch
    total_bGGC, seen_GG1 = torch.zeros(len(images_bSS3), side, side, len(classes_CE)), torch.zeros(side, side, 1)
    for y, x in product(range(0, windows * stride, stride), repeat=2):
        pixels = images_bSS3[:, patch * y : patch * (y + grid), patch * x : patch * (x + grid)]
        patches_bLE = encoder.text_patches(in_unit_range(pixels)).float().cpu()
        cosine_bLC = F.normalize(patches_bLE, dim=-1) @ classes_CE.T
        total_bGGC[:, y : y + grid, x : x + grid] += cosine_bLC.unflatten(1, (grid, grid))
        seen_GG1[y : y + grid, x : x + grid] += 1
    return {COSINES: total_bGGC / seen_GG1}


def _stride(encoder: Encoder) -> int:
    return max(encoder.grid // 2, 1)
