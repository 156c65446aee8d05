"""Karpathy's JSON (dataset_coco.json, dataset_flickr8k.json, dataset_flickr30k.json) as a table of captions.

All of its splits are read; `splits_read` counts them. An image is named by its file name alone, because its folder
differs from copy to copy.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from tips_ray.data.sources.tables import Line, Table

COLUMNS = ["image", "caption"]
_NAME = re.compile(r"dataset_(coco|flickr8k|flickr30k)[^/]*\.json", re.IGNORECASE)
"""Other data sets have a dataset_info.json or a dataset.json, which hold no captions."""


def is_karpathy(uri: str) -> bool:
    """The file has the name of such a JSON."""
    return _NAME.fullmatch(uri.rpartition("/")[2]) is not None


def read_karpathy(text: str, name: str) -> Table:
    """A row for each sentence of each image; an image without sentences has one without a caption.

    Raises:
        ValueError: the file is no JSON, or has other fields; it names the first image that does not fit.
    """
    try:
        images = json.loads(text)["images"]
        if not isinstance(images, list):
            raise TypeError(f"`images` is {type(images).__name__}")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"[:200]
        raise ValueError(f"{name}: this is no JSON with a list `images` ({reason}); write a CSV instead") from None
    return Table(COLUMNS, [Line(*row) for row in _rows(images, name)], [])


def splits_read(text: str) -> str:
    """A sentence about the splits of such a JSON that was read, e.g. that a test split is among the rows."""
    counts = Counter(str(image.get("split", "none")) for image in json.loads(text)["images"])
    counted = ", ".join(f"{name} {count:,}" for name, count in counts.most_common())
    held_out = [name for name in counts if name not in ("train", "restval", "none")]
    cure = f"; take the images of {' and '.join(held_out)} out of the JSON if scores are measured on them"
    return f"images of all splits are read: {counted}{cure * bool(held_out)}"


def _rows(images: list[Any], name: str) -> Iterator[tuple[int, list[Any]]]:
    for number, image in enumerate(images):
        try:
            file, sentences = str(image["filename"]), [sentence["raw"] for sentence in image["sentences"]]
        except (KeyError, TypeError) as error:
            fault = f"lacks {error}" if isinstance(error, KeyError) else "has another form"
            raise ValueError(
                f"{name}: images[{number}] {fault}; each needs `filename` and a list `sentences` of dictionaries with "
                "`raw`"
            ) from None
        yield from ((number, [file, sentence]) for sentence in sentences or [""])
