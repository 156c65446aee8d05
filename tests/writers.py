"""Small data sets of real files for tests: images, tars, Parquet files, folders."""

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image


def jpeg(number: int = 0) -> bytes:
    """A different picture for every number below 256."""
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (number, 255 - number, 100)).save(buffer, "JPEG")
    return buffer.getvalue()


def write_tar(path: Path, members: Iterable[tuple[str, bytes]], format: int = tarfile.GNU_FORMAT) -> None:
    """A tar with these members in this order."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


def pair(key: str, number: int, caption: str, **fields: Any) -> list[tuple[str, bytes]]:
    """Members of a row: image, web caption, and a JSON of `fields` if there are any."""
    members = [(f"{key}.jpg", jpeg(number)), (f"{key}.txt", f"{caption}\n".encode())]
    return members + ([(f"{key}.json", json.dumps(fields).encode())] if fields else [])


def write_pairs(path: Path, rows: int, first: int = 0) -> None:
    """A tar of `rows` images with one caption of each kind."""
    numbers = range(first, first + rows)
    write_tar(path, [member for n in numbers for member in pair(f"{n:05d}", n, f"web {n}", re_caption=f"made {n}")])


def write_parquet(path: Path, columns: Mapping[str, Any], row_group_size: int = 5) -> None:
    """A Parquet file; lists of Python values become Arrow columns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(dict(columns)), path, row_group_size=row_group_size)


def write_folder(path: Path, images: Iterable[str], lines: Iterable[str], table: str = "captions.csv") -> None:
    """A folder of images with a table beside them; the first line is the header."""
    for number, name in enumerate(images):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(jpeg(number))
    (path / table).write_text("\n".join(lines) + "\n")
