"""Images with depth and normals in folders, local or s3://. H W pixels."""

import io
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tips_ray import storage
from tips_ray.config.evaluation_data import GeometryFolderConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import ImageStack, by_stem, read_image, read_parts
from tips_ray.evaluation.metrics import UNIT_TOLERANCE

KINDS = ("depth", "normals")
WRONG = {"depth": "pixels of depth that is not finite", "normals": "pixels of normals that are not of length 1"}


def geometry_folder(config: GeometryFolderConfig, size_px: int, with_train: bool) -> Dataset:
    """Read `train` and `val`, each with `images` and one or both of `depth` and `normals`.

    Pixels with depth that is not finite, or with normals not of length 1, are counted and set to 0. An image whose map
    has no valid pixel is left out.

    Raises:
        ValueError: a folder is missing or has no usable image, or a map cannot be read.
    """
    assert config.folder is not None

    def part(uri: str, left_out: Counter[str]) -> Examples:
        return _part(uri, config, size_px, left_out)

    train, test, left_out = read_parts(config.folder, part, with_train)
    return Dataset(test, train, left_out=left_out)


def _part(folder: str, config: GeometryFolderConfig, size_px: int, left_out: Counter[str]) -> Examples:
    images = ImageStack(size_px)
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    uris = {kind: by_stem(storage.join(folder, kind)) for kind in KINDS}
    for stem, uri in by_stem(storage.join(folder, "images")).items():
        image = read_image(uri, size_px, left_out)
        maps = None if image is None else _maps(stem, image.size, uris, config, left_out)
        if image is not None and maps is not None:
            images.append(image.pixels_SS3)
            for kind, one in maps.items():
                found[kind].append(one)
    return Examples(images.images(folder, left_out), depth_m=found["depth"], normals=found["normals"])


def _maps(
    stem: str,
    size: tuple[int, int],
    uris: Mapping[str, Mapping[str, str]],
    config: GeometryFolderConfig,
    left_out: Counter[str],
) -> dict[str, Tensor] | None:
    """Maps of one image, of all kinds that the data set has; None if one cannot be used."""
    maps = {}
    for kind in (kind for kind in KINDS if uris[kind]):
        if stem not in uris[kind]:
            left_out[f"no {kind}"] += 1
            return None
        one, wrong = _depth(uris[kind][stem], config.depth_unit_m) if kind == "depth" else _normals(uris[kind][stem])
        if wrong:
            left_out[WRONG[kind]] += wrong
        if tuple(one.shape[-2:]) != size:
            left_out[f"{kind} of another size"] += 1
            return None
        if not one.any():
            left_out[f"no {kind} in any pixel"] += 1
            return None
        maps[kind] = one
    return maps


def array(uri: str) -> np.ndarray:
    """The array in a `.npy` or picture file."""
    content = io.BytesIO(storage.read_bytes(uri))
    try:
        if uri.endswith(".npy"):
            return np.load(content, allow_pickle=False)
        with Image.open(content) as file:
            return np.array(file)
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"{uri} is no map: {error}") from error


def _depth(uri: str, unit_m: float) -> tuple[Tensor, int]:
    """Metres [H, W], 0 where there is none, and the number of non-finite pixels; integers are in units of `unit_m`."""
    values = array(uri)
    if values.ndim != 2:
        raise ValueError(f"{uri} has shape {values.shape}; depth is [H, W]")
    return metres(values, unit_m if values.dtype.kind in "ui" else 1)


def metres(values_HW: np.ndarray, unit_m: float) -> tuple[Tensor, int]:
    """Depth in metres, 0 where there is none, and the number of pixels that are not finite."""
    depth_HW = values_HW.astype(np.float32) * unit_m
    is_finite = np.isfinite(depth_HW)
    kept = np.where(is_finite & (depth_HW > 0), depth_HW, 0).astype(np.float32)
    return torch.from_numpy(kept), int((~is_finite).sum())


def _normals(uri: str) -> tuple[Tensor, int]:
    """Normals [3, H, W], 0 where there is none, and the number of pixels with a length other than 1 and 0."""
    values = array(uri)
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind != "f":
        raise ValueError(f"{uri} has shape {values.shape} {values.dtype}; normals are floating point [H, W, 3]")
    lengths = np.linalg.norm(values.astype(np.float64), axis=2)
    is_unit = np.abs(lengths - 1) <= UNIT_TOLERANCE
    kept = np.where(is_unit[..., None], values, 0).astype(np.float32)
    return torch.from_numpy(kept).permute(2, 0, 1).contiguous(), int((~is_unit & (lengths != 0)).sum())
