"""Damaged and odd Parquet files: as many rows are read or bad as were written, or the file is refused by name.

`make fuzz` (TIPS_RAY_FUZZ=1000) tries a thousand of each; the suite tries forty, always the same.
"""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fuzz import damaged, damages, fuzz
from hypothesis import event, given
from hypothesis import strategies as st
from source_reader import read_all

from tips_ray.data.columns import SourceRow

pytestmark = pytest.mark.heavy
Texts = list[str | None]


def _image(number: int) -> bytes:
    return f"image {number} ".encode() * (1 + 37 * number % 90)


IMAGES: dict[str, Callable[[list[bytes | None]], Any]] = {
    "binary": lambda images: pa.array(images, pa.binary()),
    "large": lambda images: pa.array(images, pa.large_binary()),
    "struct": lambda images: pa.array([{"bytes": image, "path": "x.jpg" if image else None} for image in images]),
    "dictionary": lambda images: pa.array(images, pa.binary()).dictionary_encode(),
}
CAPTIONS: dict[str, Callable[[Texts], Any]] = {
    "string": lambda texts: pa.array(texts, pa.string()),
    "large": lambda texts: pa.array(texts, pa.large_string()),
    "bytes": lambda texts: pa.array([text and text.encode() for text in texts], pa.binary()),
    "dictionary": lambda texts: pa.array(texts, pa.string()).dictionary_encode(),
    "list": lambda texts: pa.array([None if text is None else [text] for text in texts], pa.list_(pa.string())),
    "large list": lambda texts: pa.array([[text] for text in texts], pa.large_list(pa.large_string())),
    "struct": lambda texts: pa.array([{"id": 1, "text": text} for text in texts]),
    "structs": lambda texts: pa.array([None if text is None else [{"raw": text}] for text in texts]),
    "map": lambda texts: pa.array([[("text", text)] for text in texts], pa.map_(pa.string(), pa.string())),
    "json": lambda texts: pa.array([None if text is None else f'["{text}"]' for text in texts], pa.string()),
    "fixed list": lambda texts: pa.array([[text] for text in texts], pa.list_(pa.string(), 1)),
}
WRITERS = [
    {},
    {"compression": "none", "use_dictionary": False},
    {"compression": "gzip", "data_page_version": "2.0"},
    {"compression": "zstd", "write_statistics": False, "store_schema": False},
    {"compression": "none", "write_page_checksum": True, "data_page_size": 300},
]


@st.composite
def tables(draw) -> tuple[pa.Table, list[bytes | None], Texts]:
    """A table, and its images and captions; a part of them is null."""
    rows, nulls = draw(st.integers(1, 12)), draw(st.sampled_from([0, 0, 3, 1]))
    images = [None if nulls and number % 5 == nulls else _image(number) for number in range(rows)]
    texts = [None if nulls and number % 4 == nulls else f"caption {number}" for number in range(rows)]
    image, caption = draw(st.sampled_from(sorted(IMAGES))), draw(st.sampled_from(sorted(CAPTIONS)))
    columns = {"image": IMAGES[image](images), "caption": CAPTIONS[caption](texts)}
    columns |= {"width": pa.array(range(rows)), "nothing": pa.nulls(rows)} if draw(st.booleans()) else {}
    event(f"{image} and {caption}")
    return pa.table(columns), images, texts


def _write(path: Path, table: pa.Table, group: int, options: dict[str, Any], empty: bool) -> None:
    """Row groups of at most `group` rows, and one without any where `empty`."""
    with pq.ParquetWriter(path, table.schema, **options) as writer:
        for first in range(0, table.num_rows, group):
            writer.write_table(table.slice(first, group))
            if empty:
                writer.write_table(table.slice(0, 0))


def _groups(path: Path) -> list[tuple[int, int, int]]:
    """Rows, and first and last byte, of each row group."""
    metadata = pq.ParquetFile(path).metadata
    found = []
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        columns = [group.column(number) for number in range(group.num_columns)]
        start = min(column.dictionary_page_offset or column.data_page_offset for column in columns)
        found.append((group.num_rows, start, start + sum(column.total_compressed_size for column in columns)))
    return found


def _check(rows: list[SourceRow], images: list[bytes | None], texts: Texts, is_damaged: list[bool]) -> None:
    """Every row has its place; those of whole row groups are as written, and bad only without an image."""
    assert len(rows) == len(images)
    for row, image, text, damaged_group in zip(rows, images, texts, is_damaged, strict=True):
        assert row["error"] or row["image"]
        if not damaged_group:
            assert bool(row["error"]) == (image is None), row["error"]
            assert row["web_caption"] == (text or "") and row["image"] == (image or b"")


@fuzz
@given(tables(), st.integers(1, 12), st.sampled_from(WRITERS), st.booleans(), damages)
def test_each_row_of_a_damaged_parquet_file_is_read_or_bad_or_the_file_is_refused(
    tmp_path, table, group, options, empty, harm
):
    columns, images, texts = table
    path = _fresh(tmp_path) / "x.parquet"
    _write(path, columns, group, options, empty)
    groups, whole = _groups(path), path.read_bytes()
    content, damage = damaged(whole, harm)
    path.write_bytes(content)
    event(damage.kind)
    try:
        rows, _, _ = read_all(path, chunk_rows=3)
    except ValueError as error:
        assert content != whole and str(path) in str(error) and len(str(error)) < 600 + len(str(path)), error
        event("refused")
    else:
        event("bad rows" if any(row["error"] for row in rows) else "read")
        in_footer = content != whole and damage.touches(groups[-1][2], len(whole))
        is_damaged = [in_footer or damage.touches(start, stop) for count, start, stop in groups for _ in range(count)]
        _check(rows, images, texts, is_damaged)


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder / "x", ignore_errors=True)
    (folder / "x").mkdir()
    return folder / "x"
