"""400 real photos with five captions each, written as users have them. Nothing of them is kept in the repository."""

import csv
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from writers import write_parquet, write_tar

from tips_ray import storage

SAMPLE = Path(__file__).parents[3] / "shared" / "data" / "flickr-sample"
SHARD_PHOTOS = 40
GROUP_PHOTOS = 20
"""Photos of a Parquet row group: chunks of 20 rows are then the same in all formats."""


class Photo(NamedTuple):
    """One photo; its first caption is the web one."""

    name: str
    image: bytes
    captions: list[str]


def photos() -> list[Photo]:
    """The sample in the order of its table."""
    with (SAMPLE / "captions.csv").open(newline="") as table:
        captions: dict[str, list[str]] = {}
        for line in csv.DictReader(table):
            captions.setdefault(line["image"], []).append(line["caption"].strip())
    return [Photo(name, (SAMPLE / "images" / name).read_bytes(), texts) for name, texts in captions.items()]


def write_layouts(root: Path, found: list[Photo]) -> None:
    """The photos as `folder`, `tars`, `parquet` and `hugging_face` below `root`."""
    _write_folder(root / "folder", found)
    for number, part in enumerate(_shards(found)):
        _write_tar(root / "tars" / f"{number:05d}.tar", part)
        captions = {
            "caption": [photo.captions[0] for photo in part],
            "synthetic_caption": [photo.captions[1:] for photo in part],
        }
        images = {"image": [photo.image for photo in part]}
        write_parquet(root / "parquet" / f"{number:03d}.parquet", images | captions, GROUP_PHOTOS)
        structs = {
            "image": [{"bytes": photo.image, "path": photo.name} for photo in part],
            "caption": [photo.captions for photo in part],
        }
        name = f"train-{number:05d}.parquet"
        write_parquet(root / "hugging_face" / name, structs, GROUP_PHOTOS)


def upload_layouts(root: Path, bucket: str) -> None:
    """All that is below `root` at the same places in the bucket."""
    files = [path for path in root.rglob("*") if path.is_file()]
    targets = [f"{bucket}/{path.relative_to(root)}" for path in files]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(storage.upload, files, targets))


def _shards(found: list[Photo]) -> Iterator[list[Photo]]:
    for first in range(0, len(found), SHARD_PHOTOS):
        yield found[first : first + SHARD_PHOTOS]


def _write_folder(folder: Path, found: list[Photo]) -> None:
    (folder / "images").mkdir(parents=True)
    for photo in found:
        (folder / "images" / photo.name).write_bytes(photo.image)
    with (folder / "captions.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["image", "caption"])
        writer.writerows([photo.name, caption] for photo in found for caption in photo.captions)


def _write_tar(path: Path, part: list[Photo]) -> None:
    """As img2dataset packs them: the caption as text and again in the JSON, with fields that are of no use here."""
    members = []
    for photo in part:
        key = photo.name.removesuffix(".jpg")
        fields = {"caption": photo.captions[0], "re_caption": photo.captions[1:], "key": key, "status": "success"}
        members += [(f"{key}.jpg", photo.image), (f"{key}.json", json.dumps(fields).encode())]
        members.append((f"{key}.txt", photo.captions[0].encode()))
    write_tar(path, members)
