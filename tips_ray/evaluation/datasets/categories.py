"""Images whose class is the name of their folder, local or s3://, as in ImageNet. N images."""

from collections import Counter
from collections.abc import Sequence

import torch

from tips_ray import storage
from tips_ray.config.evaluation_data import ClassFolderConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import ImageStack, read_images, read_parts


def class_folder(config: ClassFolderConfig, size_px: int, with_train: bool) -> Dataset:
    """Read `train/CLASS/*.jpg` and `val/CLASS/*.jpg`; `val` may lack classes of `train`, and `train` may be absent.

    Raises:
        ValueError: a folder is missing or has no usable image, or `val` or `class_names` has a class without a folder.
    """
    assert config.folder is not None
    learned, judged = (classes_in(config.folder, part) for part in ("train", "val"))
    folders = learned or judged
    unknown = [folder for folder in (*judged, *config.class_names) if folder not in folders]
    if unknown:
        raise ValueError(f"{config.folder}: class {unknown[0]!r} has no folder in train, which has {len(folders)}")
    names = tuple(config.class_names.get(folder, folder.replace("_", " ")) for folder in folders)

    def part(uri: str, left_out: Counter[str]) -> Examples:
        return categorised(uri, folders, size_px, left_out)

    train, test, left_out = read_parts(config.folder, part, with_train)
    return Dataset(test, train, category_names=names, left_out=left_out)


def classes_in(folder: str, part: str) -> list[str]:
    """Names of the folders in a part, sorted."""
    return [uri.rsplit("/", 1)[-1] for uri in storage.list_folders(storage.join(folder, part))]


def categorised(folder: str, classes: Sequence[str], size_px: int, left_out: Counter[str]) -> Examples:
    """Read the images in the folders of the classes; the class of an image is the place of its folder.

    Raises:
        ValueError: no image can be used.
    """
    images, category_n = ImageStack(size_px), list[int]()
    files = [
        (storage.join(folder, name, file), category)
        for category, name in enumerate(classes)
        for file in storage.list_names(storage.join(folder, name))
    ]
    for image, (_, category) in zip(read_images((uri for uri, _ in files), size_px, left_out), files, strict=True):
        if image is not None:
            images.append(image.pixels_SS3)
            category_n.append(category)
    return Examples(images.images(folder, left_out), categories_N=torch.tensor(category_n))
