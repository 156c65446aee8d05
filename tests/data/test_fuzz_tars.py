"""Damaged and odd tars: each row that was written is read, is a bad row, or lies behind a place that is named.

`make fuzz` (TIPS_RAY_FUZZ=1000) tries a thousand of each; the suite tries forty, always the same.
"""

import io
import shutil
import tarfile
from itertools import groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
from fuzz import Damage, damaged, damages, fuzz
from hypothesis import event, given
from hypothesis import strategies as st
from source_reader import read_all

from tips_ray.data.columns import SourceRow
from tips_ray.data.sources import Reject

pytestmark = pytest.mark.heavy


class Written(NamedTuple):
    """A row as it was written, and its bytes in the tar."""

    key: str
    image: bytes
    caption: str
    start: int
    stop: int


FORMATS = [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]
PREFIXES = ["", "deep/", "./", "größe-", "k" * 90, "long/" * 30]
NOT_ROWS = ["README", "deep/.hidden.jpg", "folder"]


def _image(number: int, size: int) -> bytes:
    return (f"image {number} ".encode() * (1 + size // 8))[:size]


@st.composite
def tars(draw) -> list[tuple[str, bytes, int]]:
    """Members in order: name, bytes, number of the row (or -1)."""
    prefix, members = draw(st.sampled_from(PREFIXES)), []
    for number in range(draw(st.integers(1, 8))):
        stem = f"{prefix}{number:04d}"
        row = [(f"{stem}.jpg", _image(number, draw(st.sampled_from([1, 40, 511, 512, 513, 1500, 6000]))))]
        row.append((f"{stem}.txt", f"caption {number}".encode()))
        row += [(f"{stem}.json", b'{"width": 8}')] * draw(st.booleans())
        members += [(*member, number) for member in draw(st.permutations(row))]
        members += [(draw(st.sampled_from(NOT_ROWS)), b"x", -1)] * draw(st.sampled_from([0, 0, 0, 1]))
    return members


def _write(members: list[tuple[str, bytes, int]], format: int) -> tuple[bytes, list[Written]]:
    buffer = io.BytesIO()
    spans: dict[int, list[int]] = {}
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, content, number in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            info.type = tarfile.DIRTYPE if name == "folder" else tarfile.REGTYPE
            start = tar.offset
            tar.addfile(info, io.BytesIO(content))
            spans.setdefault(number, []).extend((start, tar.offset))
    rows = []
    for number in sorted(spans.keys() - {-1}):
        parts = {name.rpartition(".")[2]: (name, content) for name, content, row in members if row == number}
        key = parts["jpg"][0].removesuffix(".jpg").removeprefix("./")
        rows.append(Written(key, parts["jpg"][1], f"caption {number}", min(spans[number]), max(spans[number])))
    return buffer.getvalue(), rows


def _check(written: list[Written], damage: Damage, rows: list[SourceRow], rejects: list[Reject]) -> None:
    """Rows clear of the damage are as written; the others are rows too, or the place of their loss is named."""
    found = {row["key"].removeprefix("./"): row for row in rows}
    is_named = any(reject.row >= len(rows) or "the tar ends inside" in reject.reason for reject in rejects)
    for row in written:
        if damage.touches(row.start, row.stop):
            continue
        there = found.get(row.key)
        if there is None:
            assert is_named and row.stop > damage.start, f"{row.key} is lost without a word"
        elif not there["error"]:
            assert (there["image"], there["web_caption"]) == (row.image, row.caption)
        else:
            assert damage.kind == "flipped", there["error"]  # a changed name may be that of its neighbour
    assert is_named or len(rows) >= len(written), f"{len(written) - len(rows)} rows are lost without a word"


def _looks_whole(damage: Damage, content: bytes) -> bool:
    """Zeros from there to the end, or up to the end of a record, are what stands at the end of a tar."""
    return not any(content[damage.start :]) or damage.stop % 10240 == 0


@fuzz
@given(tars(), st.sampled_from(FORMATS), damages)
def test_each_row_of_a_damaged_tar_is_read_or_counted_or_its_loss_is_named(tmp_path, members, format, harm):
    content, written = _write(members, format)
    content, damage = damaged(content, harm)
    event(damage.kind)
    if damage.kind in ("zeros", "left out") and _looks_whole(damage, content):
        return  # the bytes of a tar with fewer rows
    path = _fresh(tmp_path) / "x.tar"
    path.write_bytes(content)
    try:
        rows, rejects, _ = read_all(path, chunk_rows=3)
    except ValueError as error:
        assert damage.kind != "none" and str(path) in str(error) and len(str(error)) < 600 + len(str(path)), error
        event("refused")
    else:
        event("named" if rejects else "read")
        _check(written, damage, rows, rejects)


@st.composite
def odd_members(draw) -> list[tuple[str, bytes, bytes]]:
    """Members as strange writers pack them: name, kind, bytes. Keys may come twice, apart or in pieces."""
    keys = draw(st.lists(st.sampled_from(["a", "b", "c", "d/a", "d/b", "e.f", "größe"]), min_size=1, max_size=8))
    kinds = st.sampled_from(
        [tarfile.REGTYPE] * 5 + [tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CONTTYPE, tarfile.AREGTYPE]
    )
    members = []
    for number, key in enumerate(keys):
        suffixes = draw(
            st.sampled_from([["jpg", "txt"], ["txt", "jpg"], ["JPG"], ["png", "txt", "json"], ["txt"], ["jpg", "jpg"]])
        )
        for suffix in suffixes:
            content = b'{"width": 8}' if suffix == "json" else f"{suffix} {number}".encode() * draw(st.integers(0, 60))
            members.append((f"{key}.{suffix}", draw(kinds), content))
    return members


@fuzz
@given(odd_members(), st.sampled_from(FORMATS), st.lists(st.integers(0, 24), max_size=2))
def test_each_member_of_an_odd_tar_belongs_to_a_row_or_the_tar_is_refused(tmp_path, members, format, cuts):
    parts = [members[start:stop] for start, stop in pairwise([0, *sorted(cuts), len(members)])]
    path = _fresh(tmp_path) / "x.tar"
    path.write_bytes(b"".join(_packed(part, format) for part in parts if part))
    try:
        rows, rejects, _ = read_all(path, chunk_rows=3)
    except ValueError as error:
        assert str(path) in str(error) and len(str(error)) < 600 + len(str(path)), error
        event("refused")
        return
    keys = [key for key, _ in groupby(_key(name) for name, _, _ in members)]
    event("bad rows" if rejects else "read")
    assert [row["key"] for row in rows] == keys and not any(reject.row >= len(rows) for reject in rejects)
    for row in rows:
        held = [content for name, kind, content in members if _key(name) == row["key"] and kind not in LINKS]
        assert row["error"] or row["image"] in held


LINKS = (tarfile.LNKTYPE, tarfile.SYMTYPE)


def _key(name: str) -> str:
    """The path up to the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _packed(members: list[tuple[str, bytes, bytes]], format: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=format) as tar:
        for name, kind, content in members:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "a.jpg" if kind in LINKS else ""
            info.size = 0 if kind in LINKS else len(content)
            tar.addfile(info, None if kind in LINKS else io.BytesIO(content))
    return buffer.getvalue()


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder / "x", ignore_errors=True)
    (folder / "x").mkdir()
    return folder / "x"
