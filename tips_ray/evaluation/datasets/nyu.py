"""NYUv2 in four published layouts. N images, H x W = 480 x 640 pixels.

The labelled .mat is HDF5 in MATLAB's order, so that its arrays read [N, 3, W, H] and [N, W, H].
"""

import codecs
import gzip
import importlib
import io
import pickle
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.io
import torch
from scipy.io.matlab import MatReadError
from torch import Tensor

from tips_ray import storage
from tips_ray.config.evaluation_data import NyuBtsConfig, NyuGeonetConfig, NyuLabelledConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples, squashed_image
from tips_ray.evaluation.datasets.geometry import array, metres
from tips_ray.evaluation.datasets.images import FileRows, FoundImage, ImageStack, ahead, counted_parts, read_image

LABELLED, SPLITS, NORMALS = "nyu_depth_v2_labeled.mat", "splits.mat", "all_normals.pklz"
BTS_LIST, BTS_FOLDERS = "nyudepthv2_{}_files_with_gt.txt", {"train": "sync", "test": "official_splits/test"}
MILLIMETRE_M = 0.001
SIZE = (480, 640)
"""Height and width of all images and maps."""
GEONET_OFFSET = 2 * np.array([122.175, 116.169, 103.508])
"""What GeoNet subtracted from its images; Probe3D adds the same."""
GEONET_BAD = (21181, 6919)
"""Places of two damaged files in the sorted list, as Probe3D leaves them out."""
SHORTEST_NORMAL = 0.1
_OF_ARRAYS = {
    ("numpy.core.multiarray", "_reconstruct"): np.array([]).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): codecs.encode,
}
"""All that a pickle of arrays names; `encode` makes the bytes of protocol 2."""


def nyu_labelled(config: NyuLabelledConfig, size_px: int, with_train: bool) -> Dataset:
    """Read images, depth, and normals if they are there, in the split of `splits.mat`.

    Raises:
        ValueError: h5py is not installed, or a file is missing or no such file.
    """
    folder, crop = str(config.folder), config.center_crop_px
    places = _split(storage.join(folder, SPLITS))
    normals_NHW3 = _all_normals(storage.join(folder, NORMALS))

    def part(name: str, left_out: Counter[str]) -> Examples:
        images, depth_m = ImageStack(size_px), FileRows(_map_size(crop), np.float32)
        with _opened(storage.join(folder, LABELLED)) as file:
            depths = file["rawDepths" if config.raw_depth else "depths"]
            for place in places[name]:
                images.append(squashed_image(cropped(file["images"][place].transpose(2, 1, 0), crop), size_px))
                depth_m.append(metres(cropped(depths[place].T, crop), 1)[0])
        normals = [] if normals_NHW3 is None else [normals_of(normals_NHW3[place], crop) for place in places[name]]
        return Examples(images.images(folder, left_out), depth_m=depth_m.rows().unbind(), normals=normals)

    train, test, left_out = counted_parts(part, "train" if with_train else None, "test")
    return Dataset(test, train, left_out=left_out)


def nyu_bts(config: NyuBtsConfig, size_px: int, with_train: bool) -> Dataset:
    """Read the images of BTS's lists, and their depth.

    Raises:
        ValueError: a list is missing, no image can be used, or a depth PNG has 8 bits.
    """
    folder = str(config.folder)

    def part(name: str, left_out: Counter[str]) -> Examples:
        images, depth_m = ImageStack(size_px), FileRows(SIZE, np.float32)
        root = storage.join(folder, BTS_FOLDERS[name])

        def read(pair: tuple[str, str]) -> tuple[FoundImage | None, Tensor | None, Counter[str]]:
            counts = Counter[str]()
            image = read_image(storage.join(root, pair[0]), size_px, counts)
            return image, image and _bts_depth(storage.join(root, pair[1]), image.size, counts), counts

        pairs = _bts_pairs(folder, name)[:: config.every if name == "train" else 1]
        for image, found, counts in ahead(read, pairs):
            left_out.update(counts)
            if image is not None and found is not None:
                images.append(image.pixels_SS3)
                depth_m.append(found)
        return Examples(images.images(root, left_out), depth_m=depth_m.rows().unbind())

    train, test, left_out = counted_parts(part, "train" if with_train else None, "test")
    return Dataset(test, train, left_out=left_out)


def nyu_geonet(config: NyuGeonetConfig, size_px: int, with_train: bool) -> Dataset:
    """Read GeoNet's training files and the labelled test images, with measured depth and normals.

    Raises:
        ValueError: a file is missing or no such file.
    """
    folder, crop = str(config.folder), config.center_crop_px
    labelled = NyuLabelledConfig(folder=folder, raw_depth=True, center_crop_px=crop)
    tested = nyu_labelled(labelled, size_px, with_train=False)
    if not tested.test.normals:
        raise ValueError(f"{folder} has no {NORMALS}, which holds the normals of the test images")
    if not with_train:
        return tested
    names, left_out = storage.list_names(storage.join(folder, "train")), Counter[str]()
    for bad in GEONET_BAD if len(names) > max(GEONET_BAD) else ():
        del names[bad]
    size = _map_size(crop)
    images, depth_m, normals = ImageStack(size_px), FileRows(size, np.float32), FileRows((3, *size), np.float32)
    for name in names[:: config.every]:
        content = _matlab(storage.join(folder, "train", name), ("img", "depth", "norm"))
        pixels = (content["img"][: SIZE[0], : SIZE[1]] + GEONET_OFFSET).clip(0, 255).astype(np.uint8)
        images.append(squashed_image(cropped(pixels, crop), size_px))
        depth_m.append(metres(cropped(content["depth"][: SIZE[0], : SIZE[1]], crop), 1)[0])
        normals.append(normals_of(content["norm"][: SIZE[0], : SIZE[1]], crop))
    images_NSS3 = images.images(storage.join(folder, "train"), left_out)
    learned = Examples(images_NSS3, depth_m=depth_m.rows().unbind(), normals=normals.rows().unbind())
    return Dataset(tested.test, learned, left_out=tested.left_out)


def cropped(values: np.ndarray, side_px: int | None) -> np.ndarray:
    """A square from the centre of [H, W, ...], contiguous; all of it without a side."""
    if side_px is not None:
        top, left = ((length - side_px) // 2 for length in values.shape[:2])
        values = values[top : top + side_px, left : left + side_px]
    return np.ascontiguousarray(values)


def normals_of(normals_HW3: np.ndarray, crop_px: int | None = None) -> Tensor:
    """Vectors scaled to length 1, [3, H, W]; those shorter than 0.1 become 0, which means none."""
    vectors = cropped(normals_HW3, crop_px).astype(np.float32)
    lengths = np.linalg.norm(vectors, axis=2, keepdims=True)
    kept = np.where(lengths > SHORTEST_NORMAL, vectors / lengths.clip(min=SHORTEST_NORMAL), 0)
    return torch.from_numpy(kept).permute(2, 0, 1).contiguous()


def _map_size(crop_px: int | None) -> tuple[int, int]:
    return SIZE if crop_px is None else (crop_px, crop_px)


def _opened(uri: str) -> Any:
    """The .mat as an open HDF5 file.

    Raises:
        ValueError: h5py is not installed, or the file is no HDF5.
    """
    try:
        h5py: Any = importlib.import_module("h5py")  # an optional package
    except ImportError:
        raise ValueError(f"reading {uri} needs h5py: install tips-ray[nyu]") from None
    storage.stat(uri)
    filesystem, path = storage.filesystem(uri)
    try:
        return h5py.File(filesystem.open_input_file(path), "r")
    except OSError as error:
        raise ValueError(f"{uri} is no MATLAB file of version 7.3 ({error}); download it again") from None


def _split(uri: str) -> dict[str, list[int]]:
    """Places of the training and of the test images; MATLAB counts from 1."""
    content = _matlab(uri, ("trainNdxs", "testNdxs"))
    return {name: (content[f"{name}Ndxs"].ravel().astype(int) - 1).tolist() for name in ("train", "test")}


def _matlab(uri: str, keys: Sequence[str]) -> dict[str, np.ndarray]:
    try:
        content = scipy.io.loadmat(io.BytesIO(storage.read_bytes(uri)))
    except storage.StorageError:
        raise
    except (MatReadError, ValueError, NotImplementedError, OSError) as error:
        raise ValueError(f"{uri} is no MATLAB file of version 5: {error}") from None
    if missing := [key for key in keys if key not in content]:
        raise ValueError(f"{uri} has no {' and no '.join(missing)}; take the file of its owners")
    return content


class _ArraysAlone(pickle.Unpickler):
    """Reads a pickle that holds numpy arrays and refuses all else, because a pickle can run any code."""

    def find_class(self, module: str, name: str) -> Any:
        found = _OF_ARRAYS.get((module.replace("numpy._core", "numpy.core"), name))
        if found is None:
            raise pickle.UnpicklingError(f"it holds {module}.{name}, which is no array")
        return found


def _all_normals(uri: str) -> np.ndarray | None:
    """Normals of all 1,449 images, [N, H, W, 3]; None if there is no such file."""
    if not storage.exists(uri):
        return None
    try:
        content = gzip.decompress(storage.read_bytes(uri))
        return _ArraysAlone(io.BytesIO(content), encoding="latin1").load()["all_normals"]
    except (pickle.UnpicklingError, gzip.BadGzipFile, EOFError, KeyError) as error:
        raise ValueError(f"{uri} holds no array all_normals: {error}") from None


def _bts_pairs(folder: str, part: str) -> list[tuple[str, str]]:
    """Image and depth of each line; the lines of the training list begin with a slash."""
    name = BTS_LIST.format(part)
    uris = [storage.join(folder, name), storage.join(folder, "train_test_inputs", name)]
    found = next((uri for uri in uris if storage.exists(uri)), None)
    if found is None:
        raise ValueError(f"{uris[0]} is missing: copy it from train_test_inputs of BTS's repository")
    lines = [line.split() for line in storage.read_text(found).splitlines() if line.strip()]
    return [(line[0].lstrip("/"), line[1].lstrip("/")) for line in lines]


def _bts_depth(uri: str, size: tuple[int, int], left_out: Counter[str]) -> Tensor | None:
    try:
        values = array(uri)
    except storage.NotFoundError:
        left_out["no depth"] += 1
        return None
    if values.dtype == np.uint8:
        raise ValueError(f"{uri} has 8 bits; depth is a PNG of 16 bits in millimetres")
    depth_m, _ = metres(values, MILLIMETRE_M)
    if not tuple(depth_m.shape) == size == SIZE or not depth_m.any():
        left_out["depth of another size" if depth_m.any() else "no depth in any pixel"] += 1
        return None
    return depth_m
