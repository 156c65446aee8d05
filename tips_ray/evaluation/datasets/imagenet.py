"""ImageNet-1k in three published layouts: class folders, flat validation images with the devkit, and Parquet.

Classes are numbered by their WordNet ids in alphabetical order, which is the order of the hub's labels and of the
models' heads. The devkit's numbers (ILSVRC2012_ID) are in another order.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import scipy.io
import torch
from scipy.io.matlab import MatReadError

from tips_ray import storage
from tips_ray.config.evaluation_data import ImagenetConfig
from tips_ray.evaluation.datasets.categories import categorised, classes_in
from tips_ray.evaluation.datasets.examples import Dataset, Examples
from tips_ray.evaluation.datasets.images import (
    FoundImage,
    ImageStack,
    ahead,
    counted_parts,
    decoded_image,
    read_images,
)

DEVKIT = "ILSVRC2012_devkit_t12/data"
TRUTH, META, MAPPING = "ILSVRC2012_validation_ground_truth.txt", "meta.mat", "LOC_synset_mapping.txt"
LEAVES = 1000
"""Synsets of the devkit with larger numbers are inner nodes of WordNet."""
ROWS_AT_ONCE = 256


def imagenet(config: ImagenetConfig, size_px: int, with_train: bool) -> Dataset:
    """Read `train` and `val` in the layout that the folder has.

    Raises:
        ValueError: the folder has none of the layouts, names of classes are missing, or no image can be used.
    """
    folder = str(config.folder)
    tables = _tables(folder)
    if tables["validation"]:
        return _from_parquet(folder, tables, size_px, with_train)
    judged = classes_in(folder, "val")
    if not judged and not storage.list_names(storage.join(folder, "val")):
        raise ValueError(f"{folder} has neither val/ with images nor data/validation-*.parquet: it is no ImageNet-1k")
    names = _names(folder)
    classes = sorted(names)
    if unknown := [one for one in judged if one not in names]:
        raise ValueError(f"{folder}/val: {unknown[0]!r} has no name in {MAPPING} or the devkit")

    def part(name: str, left_out: Counter[str]) -> Examples:
        uri = storage.join(folder, name)
        if name == "val" and not judged:
            return _flat_validation(folder, classes, size_px, left_out)
        return categorised(uri, classes, size_px, left_out)

    train, test, left_out = counted_parts(part, "train" if with_train else None, "val")
    return Dataset(test, train, category_names=tuple(names[one] for one in classes), left_out=left_out)


def _names(folder: str) -> dict[str, str]:
    """First name of each WordNet id: `tench` of `n01440764 tench, Tinca tinca`."""
    mapping, meta = storage.join(folder, MAPPING), storage.join(folder, DEVKIT, META)
    if storage.exists(mapping):
        pairs = [line.split(" ", 1) for line in storage.read_text(mapping).splitlines() if " " in line]
        return {wordnet: words.split(",")[0].strip() for wordnet, words in pairs}
    if storage.exists(meta):
        return {wordnet: words.split(",")[0].strip() for _, wordnet, words in _synsets(meta)}
    raise ValueError(f"{folder} has no names of classes: put {MAPPING} or {DEVKIT}/{META} into it")


def _synsets(uri: str) -> list[tuple[int, str, str]]:
    """ILSVRC2012_ID, WordNet id and words of the 1,000 classes."""
    try:
        found = scipy.io.loadmat(io.BytesIO(storage.read_bytes(uri)), squeeze_me=True)["synsets"]
        rows = [(int(one["ILSVRC2012_ID"]), str(one["WNID"]), str(one["words"])) for one in np.atleast_1d(found)]
    except (MatReadError, ValueError, KeyError, IndexError) as error:
        raise ValueError(f"{uri} is not the devkit's meta.mat: {error}") from None
    return [row for row in rows if row[0] <= LEAVES]


def _flat_validation(folder: str, classes: Sequence[str], size_px: int, left_out: Counter[str]) -> Examples:
    """Images `ILSVRC2012_val_00000001.JPEG` and on; line n of the ground truth has the number of image n."""
    devkit = storage.join(folder, DEVKIT)
    place_of = {number: classes.index(wordnet) for number, wordnet, _ in _synsets(storage.join(devkit, META))}
    numbers = [int(line) for line in storage.read_text(storage.join(devkit, TRUTH)).split()]
    images, categories = ImageStack(size_px), []
    uris = (storage.join(folder, "val", f"ILSVRC2012_val_{row + 1:08d}.JPEG") for row in range(len(numbers)))
    for image, number in zip(read_images(uris, size_px, left_out), numbers, strict=True):
        if image is not None:
            images.append(image.pixels_SS3)
            categories.append(place_of[number])
    return Examples(images.images(storage.join(folder, "val"), left_out), categories_N=torch.tensor(categories))


def _tables(folder: str) -> dict[str, list[str]]:
    """URIs of the Parquet files of each part, in `data` or in the folder itself."""
    found = {"train": list[str](), "validation": list[str]()}
    for place in (storage.join(folder, "data"), folder):
        for name in storage.list_names(place):
            part = name.split("-")[0]
            if part in found and name.endswith(".parquet"):
                found[part].append(storage.join(place, name))
    return found


def _from_parquet(folder: str, tables: dict[str, list[str]], size_px: int, with_train: bool) -> Dataset:
    def part(name: str, left_out: Counter[str]) -> Examples:
        images, categories = ImageStack(size_px), []
        for uri in tables[name]:
            for image, row, counts in ahead(partial(_decoded, size_px), _rows(uri)):
                left_out.update(counts)
                if image is not None and row["label"] is not None and row["label"] >= 0:
                    images.append(image.pixels_SS3)
                    categories.append(row["label"])
                elif image is not None:
                    left_out["no label"] += 1
        return Examples(images.images(f"{folder} ({name})", left_out), categories_N=torch.tensor(categories))

    names = _label_names(tables["validation"][0])
    train, test, left_out = counted_parts(part, "train" if with_train else None, "validation")
    for examples in (train, test):
        found = None if examples is None else examples.categories_N
        if found is not None and found.max() >= len(names):
            raise ValueError(f"{folder} has label {int(found.max())}, and its metadata name {len(names)} classes")
    return Dataset(test, train, category_names=names, left_out=left_out)


def _decoded(size_px: int, row: dict[str, Any]) -> tuple[FoundImage | None, dict[str, Any], Counter[str]]:
    counts = Counter[str]()
    return decoded_image((row["image"] or {}).get("bytes") or b"", size_px, counts), row, counts


def _rows(uri: str) -> Iterator[dict[str, Any]]:
    """Rows with `image` (a struct with `bytes`) and `label`."""
    filesystem, path = storage.filesystem(uri)
    with storage.attempt(uri, lambda: filesystem.open_input_file(path)) as file:
        table = pq.ParquetFile(file)
        if missing := {"image", "label"} - set(table.schema_arrow.names):
            raise ValueError(f"{uri} has no column {' and '.join(sorted(missing))}; the hub's files have both")
        for batch in table.iter_batches(ROWS_AT_ONCE, columns=["image", "label"]):
            yield from batch.to_pylist()


def _label_names(uri: str) -> tuple[str, ...]:
    """First name of each class, which the hub keeps in the metadata of the schema.

    Raises:
        ValueError: there are none.
    """
    filesystem, path = storage.filesystem(uri)
    with storage.attempt(uri, lambda: filesystem.open_input_file(path)) as file:
        metadata = pq.read_schema(file).metadata or {}
    try:
        names = json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        return tuple(str(name).split(",")[0].strip() for name in names)
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{uri} has no names of classes in its metadata: take the hub's own Parquet files") from None
