"""UnED: eight sets of fine-grained and instance retrieval, by the info files of its authors.

Source: Towards Universal Image Embeddings, ICCV 2023, and its code: queries are the test images of each set; Met, GLDv2
and InShop have an index of their own, and the other sets are searched in their own test images.
"""

import json
from collections import Counter
from typing import NamedTuple

import torch

from tips_ray import storage
from tips_ray.config.evaluation_data import UnedConfig
from tips_ray.evaluation.datasets.examples import Dataset, Examples, Instances
from tips_ray.evaluation.datasets.images import ImageStack, read_images

OWN_INDEX = {"inshop", "met", "gldv2"}
"""Sets with an `index.json` beside `test.json`."""


class Entry(NamedTuple):
    """An image of an info file."""

    path: str
    """Below `images`."""
    labels: tuple[int, ...]
    """Right answers; a query of GLDv2 has several."""


def uned(config: UnedConfig, size_px: int, with_train: bool = False) -> Dataset:
    """Read queries and index of all sets; an image that is both is read once.

    A query whose class no other image of its index has is counted and asks nothing: its right answers were left out.

    Raises:
        ValueError: an info file is missing or has another form, or no image can be used.
    """
    folder = str(config.folder)
    images, left_out = ImageStack(size_px), Counter[str]()
    domain_n, labels, is_query, is_index = list[int](), list[tuple[int, ...]](), list[bool](), list[bool]()
    for domain, name in enumerate(config.sets):
        queries = _entries(storage.join(folder, "info_files", name, "test.json"))
        own = name in OWN_INDEX
        index = _entries(storage.join(folder, "info_files", name, "index.json")) if own else []
        entries = [*((one, True) for one in queries), *((one, False) for one in index)]
        uris = (_image_uri(storage.join(folder, "images", entry.path)) for entry, _ in entries)
        for image, (entry, asks) in zip(read_images(uris, size_px, left_out), entries, strict=True):
            if image is not None:
                images.append(image.pixels_SS3)
                domain_n.append(domain)
                labels.append(entry.labels)
                is_query.append(asks)
                is_index.append(not own or not asks)
    images_NSS3 = images.images(storage.join(folder, "images"), left_out)
    found = Instances(config.sets, torch.tensor(domain_n), labels, torch.tensor(is_query), torch.tensor(is_index))
    answered = found.relevant_N > 0
    if lonely := int((found.is_query_N & ~answered).sum()):
        left_out["queries without another image of their class"] = lonely
    instances = found._replace(is_query_N=found.is_query_N & answered)
    return Dataset(Examples(images_NSS3, instances=instances), left_out=left_out)


def _entries(uri: str) -> list[Entry]:
    try:
        content = json.loads(storage.read_text(uri))
        return [Entry(str(one["path"]), _labels(one["class_id"])) for one in content]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{uri} is not an info file of UnED, a list of path and class_id ({type(error).__name__}: {error})"
        ) from None


def _labels(value: int | str | list[int | str]) -> tuple[int, ...]:
    return tuple(int(one) for one in (value if isinstance(value, list) else [value]))


def _image_uri(uri: str) -> str:
    """The file; Chinese names of RP2K are escaped in copies that some unzip programs made, as `#U4e2d`."""
    if "/rp2k/" not in uri or uri.isascii() or storage.exists(uri):
        return uri
    escaped = str(uri.encode("unicode-escape")).replace("\\\\u", "#U").replace("\\\\x", "#U00")
    return escaped[2:-1]
