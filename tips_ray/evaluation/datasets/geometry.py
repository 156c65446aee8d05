"""Images with depth and normals in folders, local or s3://. H W pixels."""

import io
from collections import Counter
from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tips_ray import storage
from tips_ray.config.evaluation import GeometryFolderConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import by_stem, read_image, require_images
from tips_ray.evaluation.metrics import UNIT_TOLERANCE

KINDS = ("depth", "normals")


def geometry_folder(config: GeometryFolderConfig, size_px: int) -> Dataset:
    """`train` and `val`, each with `images` and one or both of `depth` and `normals`.

    Pixels of depth that is not finite, and of normals that are not of length 1, count as having none; an image without
    any is left out.

    Raises:
        ValueError: a folder is missing or has no image that can be used, or a map is no map.
    """
    assert config.folder is not None
    left_out: Counter[str] = Counter()
    train, test = (_part(storage.join(config.folder, part), config, size_px, left_out) for part in ("train", "val"))
    return Dataset(test, train, left_out=left_out)


def _part(folder: str, config: GeometryFolderConfig, size_px: int, left_out: Counter[str]) -> Examples:
    images: list[Tensor] = []
    found: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    uris = {kind: by_stem(storage.join(folder, kind)) for kind in KINDS}
    for stem, uri in by_stem(storage.join(folder, "images")).items():
        image = read_image(uri, size_px, left_out)
        maps = None if image is None else _maps(stem, image.size, uris, config, left_out)
        if image is not None and maps is not None:
            images.append(image.pixels_SS3)
            for kind, one in maps.items():
                found[kind].append(one)
    require_images(images, folder, left_out)
    return Examples(torch.stack(images), depth_m=found["depth"], normals=found["normals"])


def _maps(
    stem: str,
    size: tuple[int, int],
    uris: Mapping[str, Mapping[str, str]],
    config: GeometryFolderConfig,
    left_out: Counter[str],
) -> dict[str, Tensor] | None:
    """All kinds that the data set has, of one image; None where one cannot be used."""
    maps = {}
    for kind in (kind for kind in KINDS if uris[kind]):
        if stem not in uris[kind]:
            left_out[f"no {kind}"] += 1
            return None
        values = _array(uris[kind][stem])
        one = _depth(values, config.depth_unit_m) if kind == "depth" else _normals(values, uris[kind][stem])
        if tuple(one.shape[-2:]) != size:
            left_out[f"{kind} of another size"] += 1
            return None
        if not one.any():
            left_out[f"no {kind} in any pixel"] += 1
            return None
        maps[kind] = one
    return maps


def _array(uri: str) -> np.ndarray:
    """Of `.npy`, else of a picture."""
    content = io.BytesIO(storage.read_bytes(uri))
    try:
        if uri.endswith(".npy"):
            return np.load(content, allow_pickle=False)
        with Image.open(content) as file:
            return np.array(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"{uri} is no map: {error}") from error


def _depth(values: np.ndarray, unit_m: float) -> Tensor:
    """Metres [H, W]; whole numbers are so many units."""
    metres = values.astype(np.float32) * (unit_m if values.dtype.kind in "ui" else 1)
    return torch.from_numpy(np.where(np.isfinite(metres) & (metres > 0), metres, 0).astype(np.float32))


def _normals(values: np.ndarray, uri: str) -> Tensor:
    """[3, H, W]"""
    if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind != "f":
        raise ValueError(f"{uri} has shape {values.shape} {values.dtype}; normals are floating point [H, W, 3]")
    lengths = np.linalg.norm(values.astype(np.float64), axis=2)
    is_unit = np.abs(lengths - 1) <= UNIT_TOLERANCE
    return torch.from_numpy(np.where(is_unit[..., None], values, 0).astype(np.float32)).permute(2, 0, 1).contiguous()
