"""NAVI v1 by Probe3D's rules: depth in metres and normals of objects, cropped around them. H W pixels.

Source: Probe3D, arXiv:2404.08636, and its code: sides scaled so that the shorter one has 512 px, a square from the
centre, a square around the object, 512 px again. The images themselves go to the encoder's side in one step.
"""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray import storage
from tips_ray.config.evaluation_data import NaviConfig
from tips_ray.data.decode import BadImage, open_image
from tips_ray.evaluation.datasets.examples import Dataset, Examples, squashed_image
from tips_ray.evaluation.datasets.geometry import array
from tips_ray.evaluation.datasets.images import MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS, FileRows, ImageStack, counted_parts

SIDE_PX = 512
DISPARITY_SCALE = 10 * (2**16 - 1)
"""A depth PNG holds this number divided by the depth in millimetres; 0 means none."""
MILLIMETRE_M = 0.001
FAR_M = 1e6
"""Depth of pixels beside the object while normals are computed."""
RELATIVE = (0.01, 0.99)
"""Least relative depth, and its span."""


class View(NamedTuple):
    """A photo of an object."""

    scene: str
    """URI of the folder of its scene."""
    name: str
    """Name of the photo without suffix."""
    camera: Mapping[str, Any]
    """Its entry in `annotations.json`."""


def navi(config: NaviConfig, size_px: int, with_train: bool) -> Dataset:
    """Read photos of multiview scenes to learn from, and those of the wild sets to test on.

    Raises:
        ValueError: no photo can be used, or `annotations.json` is damaged.
    """
    folder = str(config.folder)
    objects = {uri: storage.list_folders(uri) for uri in storage.list_folders(folder)}
    scenes: dict[str, list[str]] = {"multiview": [], "wild": []}
    for of_object in objects.values():
        wild, multiview = ([uri for uri in of_object if _named(uri, name)] for name in ("wild_set", "multiview"))
        if wild and multiview:
            scenes["wild"] += wild
            scenes["multiview"] += multiview

    def part(name: str, left_out: Counter[str]) -> Examples:
        views = [view for scene in scenes[name] for view in _views(scene)]
        return _examples(views[:: config.every], config, size_px, left_out)

    train, test, left_out = counted_parts(part, "multiview" if with_train else None, "wild")
    return Dataset(test, train, left_out=left_out)


def _named(uri: str, name: str) -> bool:
    return uri.rsplit("/", 1)[-1].startswith(name)


def _views(scene: str) -> list[View]:
    """Photos of a scene, sorted; resized copies, which have an underscore in their names, are left out."""
    uri = storage.join(scene, "annotations.json")
    try:
        cameras = {str(one["filename"]).split(".")[0]: one for one in json.loads(storage.read_text(uri))}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} is no list of annotations with filename: {error}") from None
    names = [name.rsplit(".", 1)[0] for name in storage.list_names(storage.join(scene, "images"))]
    return [View(scene, name, cameras[name]) for name in names if "_" not in name and name in cameras]


def _examples(views: Sequence[View], config: NaviConfig, size_px: int, left_out: Counter[str]) -> Examples:
    size = (SIDE_PX, SIDE_PX)
    images, depth_m, normals = ImageStack(size_px), FileRows(size, np.float32), FileRows((3, *size), np.float32)
    for view in views:
        try:
            pixels = _pixels(storage.join(view.scene, "images", f"{view.name}.jpg"))
            disparity = array(storage.join(view.scene, "depth", f"{view.name}.png"))
        except storage.NotFoundError:
            left_out["missing"] += 1
            continue
        except BadImage as error:
            left_out[error.reason] += 1
            continue
        if disparity.shape != pixels.shape[:2] or not disparity.any():
            left_out["depth of another size" if disparity.any() else "no depth in any pixel"] += 1
            continue
        focal_px = view.camera["camera"]["focal_length"] * SIDE_PX / min(view.camera["image_size"])
        pixels, depth_HW, normals_3HW = around_object(pixels, depth_of(disparity), focal_px)
        images.append(squashed_image(pixels, size_px))
        depth_m.append(relative(depth_HW) if config.relative_depth else depth_HW)
        normals.append(normals_3HW)
    images_NSS3 = images.images(str(config.folder), left_out)
    return Examples(images_NSS3, depth_m=depth_m.rows().unbind(), normals=normals.rows().unbind())


def _pixels(uri: str) -> np.ndarray:
    """An upright photo, uint8 [H, W, 3]; its EXIF orientation is that of its depth."""
    return open_image(storage.read_bytes(uri), MAX_IMAGE_BYTES, MAX_IMAGE_PIXELS).pixels()


def depth_of(disparity_HW: np.ndarray) -> Tensor:
    """Depth in metres from the 16-bit values of a PNG; 0 where there is none."""
    values = torch.from_numpy(disparity_HW.astype(np.float32))
    return torch.where(values > 0, MILLIMETRE_M * DISPARITY_SCALE / values.clamp(min=1), torch.zeros(()))


def around_object(pixels: np.ndarray, depth_HW: Tensor, focal_px: float) -> tuple[np.ndarray, Tensor, Tensor]:
    """Photo, depth [512, 512] and normals [3, 512, 512] of a square around all pixels with depth.

    Args:
        pixels: uint8 [H, W, 3].
        depth_HW: metres, 0 where there is none.
        focal_px: focal length at a shorter side of 512 px.
    """
    scale = min(pixels.shape[:2]) / SIDE_PX
    size = [round(length / scale) for length in pixels.shape[:2]]
    small = F.interpolate(depth_HW[None, None], size, mode="nearest")[0, 0]
    top, left = ((length - SIDE_PX) // 2 for length in size)
    small = small[top : top + SIDE_PX, left : left + SIDE_PX]
    first_y, first_x, side = square_around(small > 0)
    depth = small[first_y : first_y + side, first_x : first_x + side]
    place = [round(scale * value) for value in (top + first_y, left + first_x, side)]
    photo = np.ascontiguousarray(pixels[place[0] : place[0] + place[2], place[1] : place[1] + place[2]])
    normals = F.interpolate(normals_from_depth(depth, focal_px)[None], (SIDE_PX, SIDE_PX), mode="nearest")[0]
    return photo, F.interpolate(depth[None, None], (SIDE_PX, SIDE_PX), mode="nearest")[0, 0], normals


def square_around(mask_SS: Tensor) -> tuple[int, int, int]:
    """Top, left and side of a square that holds all pixels of the mask, inside of the picture.

    As in Probe3D: the box of the object, its shorter side extended on both sides, or only upwards and to the left where
    that would leave the picture.
    """
    places_P2 = mask_SS.nonzero()
    first, last = places_P2.amin(dim=0), places_P2.amax(dim=0)
    box = last - first
    side = int(box.max().clamp(min=1))
    pad = side - box
    start = first - pad // 2
    if not ((start >= 0).all() and (start + side <= torch.tensor(mask_SS.shape)).all()):
        start = (first - pad).clamp(min=0)
    return int(start[0]), int(start[1]), side


def normals_from_depth(depth_HW: Tensor, focal_px: float) -> Tensor:
    """Unit normals [3, H, W] from the four neighbours of each pixel, 0 at the border and where there is no depth.

    As in Probe3D, pixels beside the object lie very far away, and the optical axis passes through the first pixel.
    """
    height, width = depth_HW.shape
    far_HW = torch.where(depth_HW > 0, depth_HW, torch.tensor(FAR_M)).double()
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    points_HW3 = torch.stack([x * far_HW / focal_px, y * far_HW / focal_px, far_HW], dim=-1)
    middle = points_HW3[1:-1, 1:-1]
    left, up = points_HW3[1:-1, :-2] - middle, points_HW3[:-2, 1:-1] - middle
    right, down = points_HW3[1:-1, 2:] - middle, points_HW3[2:, 1:-1] - middle
    turns = ((left, up), (up, right), (right, down), (down, left))
    summed = torch.stack([torch.linalg.cross(*turn) for turn in turns]).sum(dim=0)
    normals_HW3 = torch.zeros_like(points_HW3)
    normals_HW3[1:-1, 1:-1] = F.normalize(summed, dim=-1)
    return (normals_HW3 * (depth_HW > 0)[..., None]).permute(2, 0, 1).float().contiguous()


def relative(depth_HW: Tensor) -> Tensor:
    """Depth of an object scaled to [0.01, 1]; 0 stays 0."""
    known = depth_HW > 0
    nearest, farthest = depth_HW[known].min(), depth_HW.max()
    scaled = (depth_HW - nearest) / (farthest - nearest).clamp(min=RELATIVE[0])
    return torch.where(known, RELATIVE[0] + RELATIVE[1] * scaled, torch.zeros(()))
