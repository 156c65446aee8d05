"""Random resized crops and flips, each a pure function of the sample's key. B samples, H, W: height and width.

No other augmentation: TIPSv2 states random resized crop and horizontal flip only.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch.nn import functional as F

from tips_ray.data.order import GOLDEN, mixed

_TRIES = 10
CROP_DRAWS = 2 * _TRIES + 3
"""Draws of one crop: area and aspect of each try, then top, left, flip."""


class Box(NamedTuple):
    """A part of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def derived(key: np.ndarray, salt: np.ndarray | int) -> np.ndarray:
    """Int64 as `tips_ray.keyed.derived` has it, with keys and salts broadcast against each other."""
    with np.errstate(over="ignore"):
        step = (np.asarray(salt).astype(np.uint64) + np.uint64(1)) * GOLDEN & np.uint64(2**63 - 1)
        return mixed(mixed(np.asarray(key).astype(np.uint64)) + step).astype(np.int64)


def uniform(key: np.ndarray, salt: np.ndarray | int = 0) -> np.ndarray:
    """Float64 in [0, 1) with the 24 random bits of `tips_ray.keyed.uniform`: equal values."""
    return (derived(key, salt).astype(np.uint64) >> np.uint64(40)) / 2.0**24


def crop_draws(key: np.ndarray, salt: np.ndarray | int) -> np.ndarray:
    """All that is random in a crop, [..., CROP_DRAWS], for keys and salts broadcast against each other."""
    return uniform(derived(key, salt)[..., None], np.arange(CROP_DRAWS))


def crop_box(
    draws: list[float],
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """A box inside the image whose area is a share of it in `scale` and whose width / height is in `ratio`.

    Area is uniform and aspect log-uniform; after ten boxes that do not fit, the largest centred one of allowed aspect.

    Args:
        draws: one row of `crop_draws`.

    Source: the rule of torchvision's RandomResizedCrop.
    """
    low, high = math.log(ratio[0]), math.log(ratio[1])
    for area_draw, aspect_draw in zip(draws[0 : 2 * _TRIES : 2], draws[1 : 2 * _TRIES : 2], strict=True):
        area = height * width * (scale[0] + (scale[1] - scale[0]) * area_draw)
        aspect = math.exp(low + (high - low) * aspect_draw)
        box_height, box_width = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < box_height <= height and 0 < box_width <= width:
            top, left = draws[2 * _TRIES : 2 * _TRIES + 2]
            top, left = int(top * (height - box_height + 1)), int(left * (width - box_width + 1))
            return Box(top, left, box_height, box_width)
    return _centred(height, width, ratio)


def is_flipped(draws: list[float], probability: float) -> bool:
    """Whether the crop is mirrored, left and right exchanged."""
    return draws[-1] < probability


def resized(image: np.ndarray, box: Box, side: int, flip: bool, out: np.ndarray) -> None:
    """Write the box of `image` (uint8 [H, W, 3]) to `out` (uint8 [3, side, side]), bilinear with antialiasing.

    torch computes this in integers: no result depends on the batch, on threads or on the vector unit, and it takes a
    third of Pillow's time.
    """
    # A copy: torch would make it anyway, and it cannot take an array that is read-only.
    crop = np.array(image[box.top : box.top + box.height, box.left : box.left + box.width])
    crop_1CHW = torch.from_numpy(crop).permute(2, 0, 1)[None]
    view_CHW = F.interpolate(crop_1CHW, size=(side, side), mode="bilinear", antialias=True)[0]
    torch.from_numpy(out).copy_(view_CHW.flip(-1) if flip else view_CHW)


def shrunk(box: Box, image_height: int, image_width: int, height: int, width: int) -> Box:
    """The box in the same image after it was brought to height x width, rounded to whole pixels."""
    top, left = round(box.top * height / image_height), round(box.left * width / image_width)
    bottom = round((box.top + box.height) * height / image_height)
    right = round((box.left + box.width) * width / image_width)
    return Box(top, left, bottom - top, right - left)


def _centred(height: int, width: int, ratio: tuple[float, float]) -> Box:
    if width / height < ratio[0]:
        box_height, box_width = round(width / ratio[0]), width
    elif width / height > ratio[1]:
        box_height, box_width = height, round(height * ratio[1])
    else:
        box_height, box_width = height, width
    return Box((height - box_height) // 2, (width - box_width) // 2, box_height, box_width)


_MASK = 1999  # salt apart from those of crops (views) and of the networks' passes


def patch_masks(sample_key_B: np.ndarray, num_patches: int, ratio: float) -> np.ndarray:
    """Boolean [B, L], True = masked: exactly round(ratio * L) of each row, uniformly drawn without replacement.

    Every patch has a random number of its own, and those with the smallest are masked.
    """
    patch_key_BL = derived(derived(sample_key_B, _MASK)[:, None], np.arange(num_patches))
    order_BL = patch_key_BL.argsort(axis=1, kind="stable")
    mask_BL = np.zeros(patch_key_BL.shape, bool)
    np.put_along_axis(mask_BL, order_BL[:, : round(ratio * num_patches)], True, axis=1)
    return mask_BL


def patch_mask(sample_key: int, num_patches: int, ratio: float) -> np.ndarray:
    """The mask of one sample, [L]."""
    return patch_masks(np.array([sample_key], np.int64), num_patches, ratio)[0]
