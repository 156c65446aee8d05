"""Captions of COCO, Flickr30k and DOCCI in the files of their publishers."""

import json
from collections import Counter
from typing import Any

from tips_ray import storage
from tips_ray.config.evaluation_data import CocoCaptionsConfig, DocciConfig, KarpathyConfig
from tips_ray.evaluation.datasets.examples import Dataset
from tips_ray.evaluation.datasets.folders import captioned

IMAGES_OF = {"flickr30k": ("flickr30k-images", "flickr30k_images"), "coco": ("val2014",)}
"""Names of the folder of images of each set."""
COCO_2017 = "annotations/captions_val2017.json"
DESCRIPTIONS = "docci_descriptions.jsonlines"


def karpathy(config: KarpathyConfig, size_px: int, with_train: bool = False) -> Dataset:
    """Read the test split of `dataset_flickr30k.json` or `dataset_coco.json`.

    Raises:
        ValueError: the JSON has another form, its test split is empty, or no image can be used.
    """
    folder = str(config.folder)
    uri = storage.join(folder, f"dataset_{config.name}.json")
    try:
        tested = [image for image in json.loads(storage.read_text(uri))["images"] if image["split"] == "test"]
        named = {str(one["filename"]): [str(text["raw"]) for text in one["sentences"]] for one in tested}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} is not Karpathy's JSON ({type(error).__name__}: {error})") from None
    images = next((name for name in IMAGES_OF[config.name] if storage.list_names(storage.join(folder, name))), None)
    if images is None:
        raise ValueError(f"{folder} has no images in {' or '.join(IMAGES_OF[config.name])}")
    return _captioned(folder, images, named, size_px, config.captions_per_image)


def coco_captions(config: CocoCaptionsConfig, size_px: int, with_train: bool = False) -> Dataset:
    """Read the images of val2017 with their captions, in the order of their numbers in the file.

    Raises:
        ValueError: the JSON has another form, or no image can be used.
    """
    folder = str(config.folder)
    uri = storage.join(folder, COCO_2017)
    try:
        content = json.loads(storage.read_text(uri))
        files = {one["id"]: str(one["file_name"]) for one in content["images"]}
        named: dict[str, list[str]] = {name: [] for name in files.values()}
        for one in sorted(content["annotations"], key=lambda one: one["id"]):
            named[files[one["image_id"]]].append(str(one["caption"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} is not COCO's JSON of captions ({type(error).__name__}: {error})") from None
    return _captioned(folder, "val2017", named, size_px, config.captions_per_image)


def docci(config: DocciConfig, size_px: int, with_train: bool = False) -> Dataset:
    """Read the images of the split `test`, with one description each.

    Raises:
        ValueError: a line has another form, or no image can be used.
    """
    folder = str(config.folder)
    uri = storage.join(folder, DESCRIPTIONS)
    named = {}
    for number, line in enumerate(storage.read_text(uri).splitlines(), start=1):
        if line.strip():
            one = _described(uri, number, line)
            if one["split"] == "test":
                named[str(one["image_file"])] = [str(one["description"])]
    return _captioned(folder, "images", named, size_px, 1)


def _described(uri: str, number: int, line: str) -> dict[str, Any]:
    try:
        found = json.loads(line)
        missing = {"split", "image_file", "description"} - found.keys()
    except (ValueError, AttributeError) as error:
        raise ValueError(f"{uri}, line {number}: {error}; download it again") from None
    if missing:
        raise ValueError(f"{uri}, line {number} has no {' and no '.join(sorted(missing))}; download it again")
    return found


def _captioned(folder: str, images: str, named: dict[str, list[str]], size_px: int, most: int) -> Dataset:
    """The images with at most `most` captions each; those without a caption are counted and left out."""
    kept = {name: [text.strip() for text in texts if text.strip()][:most] for name, texts in named.items()}
    left_out = +Counter({"no caption": sum(not texts for texts in kept.values())})
    pairs = [(storage.join(folder, images, name), texts) for name, texts in kept.items() if texts]
    return Dataset(captioned(pairs, size_px, storage.join(folder, images), left_out), left_out=left_out)
