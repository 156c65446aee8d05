"""Damaged and odd tables: each caption in a line that is whole is read, its line is a bad row, or the table is refused.

`make fuzz` (TIPS_RAY_FUZZ=1000) tries a thousand of each; the suite tries forty, always the same.
"""

import csv
import io
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from fuzz import Damage, damaged, damages, fuzz
from hypothesis import event, given
from hypothesis import strategies as st
from source_reader import read_all

from tips_ray.data.columns import SourceRow

pytestmark = pytest.mark.heavy
IMAGES = 12
WRITERS: dict[str, dict[str, Any]] = {
    "standard": {"lineterminator": "\n"},
    "windows": {"lineterminator": "\r\n"},
    "all in marks": {"lineterminator": "\n", "quoting": csv.QUOTE_ALL},
    "escaped": {"lineterminator": "\n", "doublequote": False, "escapechar": "\\", "quoting": csv.QUOTE_ALL},
}
CAPTIONS = [
    "a dog runs",
    "dog, cat",
    'a "big" dog',
    "two\nlines",
    "größe",
    '"a dog',
    '9" pipe',
    "a; b | c\td",
    "C:\\dir",
]
ODD = [
    "{name}",
    "{name}{d}a{d}b{d}c{d}d",
    "{d}no name",
    "",
    "{d}{d}",
    "   ",
    "none.jpg{d}of no image",
    "# a remark",
    "\x00",
]
ENCODINGS = ["utf-8", "utf-8", "utf-8", "utf-8-sig", "latin-1", "utf-16"]


class Written(NamedTuple):
    """A line of the table, by the bytes that it takes; odd ones have no caption of their own."""

    image: str
    caption: str
    start: int
    stop: int


@st.composite
def tables(draw) -> tuple[bytes, list[Written], str]:
    """The bytes of a table, its lines, and the suffix of its name."""
    delimiter, writer = draw(st.sampled_from(",\t;|")), draw(st.sampled_from(sorted(WRITERS)))
    encoding = draw(st.sampled_from(ENCODINGS))
    oddness, content = draw(st.sampled_from([0, 0, 1, 5])), b""
    header = _line(["image", "caption", "more"], delimiter, writer)
    content, lines = header.encode(encoding), []
    for number in range(draw(st.integers(1, 30))):
        if draw(st.integers(0, 9)) < oddness:
            odd = draw(st.sampled_from(ODD)).format(d=delimiter, name=f"{number % IMAGES}.jpg") + "\n"
            caption, text = "", odd
        else:
            caption = f"{draw(st.sampled_from(CAPTIONS))} {number}"
            text = _line([f"{number % IMAGES}.jpg", caption, "x"], delimiter, writer)
        added = text.encode(encoding).removeprefix(b"\xff\xfe").removeprefix(b"\xef\xbb\xbf")
        lines.append(Written(f"{number % IMAGES}.jpg", caption, len(content), len(content) + len(added)))
        content += added
    event(f"{writer}, {encoding}")
    return content, lines, ".tsv" if delimiter == "\t" else ".csv"


def _line(cells: list[str], delimiter: str, writer: str) -> str:
    out = io.StringIO()
    csv.writer(out, delimiter=delimiter, **WRITERS[writer]).writerow(cells)
    return out.getvalue()


def _check(lines: list[Written], damage: Damage, rows: list[SourceRow]) -> None:
    read = {(row["key"], _plain(text)) for row in rows for text in (row["web_caption"], *row["synthetic_captions"])}
    whole = [line for line in lines if line.caption and not damage.changes(line.start, line.stop)]
    lost = [line.caption for line in whole if (line.image, _plain(line.caption)) not in read]
    bad = [row for row in rows if row["error"]]
    assert len(lost) <= len(bad), f"{lost} are lost without a word: {read}"


def _plain(text: str) -> str:
    """Without marks that enclose or escape in some dialect and mean themselves in another."""
    return text.replace('"', "").replace("\\", "").replace("\r\n", "\n")


@fuzz
@given(tables(), damages)
def test_each_line_of_a_damaged_table_is_read_or_counted_or_the_table_is_refused(tmp_path, table, harm):
    content, lines, suffix = table
    content, damage = damaged(content, harm)
    event(damage.kind)
    path = _folder(tmp_path) / f"captions{suffix}"
    path.write_bytes(content)
    try:
        rows, _, _ = read_all(path.parent, chunk_rows=5)
    except ValueError as error:
        is_plain = content.isascii() and b"\\" not in content and all(line.caption for line in lines)
        assert not (is_plain and damage.kind == "none"), error
        assert str(path) in str(error) and len(str(error)) < 600 + len(str(path)), error
        event("refused")
    else:
        event("read")
        _check(lines, damage, rows)


def _folder(root: Path) -> Path:
    """A folder of images without a table."""
    folder = root / "x"
    if not folder.exists():
        folder.mkdir()
        for number in range(IMAGES):
            (folder / f"{number}.jpg").write_bytes(b"image")
    for table in folder.glob("captions.*"):
        table.unlink()
    return folder
