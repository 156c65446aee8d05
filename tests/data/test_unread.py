"""Tars that cannot be read to their end, and tars without rows, beside whole ones."""

import io
import tarfile
from pathlib import Path

import pytest
from writers import write_pairs, write_tar

from tips_ray.config import DataConfig
from tips_ray.data.index import Index, build_index, unread_bytes
from tips_ray.data.sources import tar


def _index(folder: Path) -> Index:
    return build_index(DataConfig.model_validate({"sources": [{"uri": str(folder)}], "chunk_rows": 2}))


def _damage(path: Path, name: bytes) -> int:
    """Damage the header of the member of this name; returns its position."""
    content = bytearray(path.read_bytes())
    place = content.index(name)
    content[place] = ord("9")
    path.write_bytes(content)
    return place


def test_bytes_behind_a_damaged_header_are_counted_by_shard(tmp_path):
    for name in ("a.tar", "b.tar", "c.tar"):
        write_pairs(tmp_path / name, rows=5)
    place = _damage(tmp_path / "b.tar", b"00003.jpg")
    _damage(tmp_path / "c.tar", b"00000.jpg")
    size = (tmp_path / "b.tar").stat().st_size
    index = _index(tmp_path)
    assert index.shards["rows"].to_pylist() == [5, 3, 0]
    assert unread_bytes(index) == {str(tmp_path / "b.tar"): size - place, str(tmp_path / "c.tar"): size}


def test_whole_tars_have_no_unread_bytes_whatever_lies_at_their_end(tmp_path):
    write_pairs(tmp_path / "a.tar", rows=3)
    (tmp_path / "a.tar").write_bytes((tmp_path / "a.tar").read_bytes() + bytes(10240))
    assert unread_bytes(_index(tmp_path)) == {}


@pytest.mark.parametrize("content", [b"", bytes(10240), b"<html>not found</html>" * 99])
def test_a_first_tar_without_rows_does_not_hide_the_others(tmp_path, content):
    (tmp_path / "a.tar").write_bytes(content)
    write_pairs(tmp_path / "b.tar", rows=3)
    index = _index(tmp_path)
    assert index.shards["rows"].to_pylist() == [0, 3] and [row["key"] for row in index.read(0)] == ["00000", "00001"]
    assert (index.sample(0)[0].path, index.sample(2)[1]) == (str(tmp_path / "b.tar"), 2)


def test_a_source_of_empty_tars_is_refused_with_the_first_ones_name(tmp_path):
    write_tar(tmp_path / "a.tar", [])
    write_tar(tmp_path / "b.tar", [])
    with pytest.raises(ValueError, match=r"a\.tar: there are no rows in it; write the shard again or leave it out"):
        _index(tmp_path)


def _cut(folder: Path, stop: int, members: list[tuple[str, bytes]]) -> list[str]:
    """Reasons that the index gives for what a tar of these members lacks behind byte `stop`."""
    write_tar(folder / "a.tar", members, tarfile.PAX_FORMAT)
    content = (folder / "a.tar").read_bytes()[:stop]
    (folder / "a.tar").write_bytes(content)
    return [reject["reason"] for reject in _index(folder).rejects.to_pylist()]


ROWS = [("a.jpg", bytes(700)), ("a.txt", b"one"), ("b.jpg", b"b"), ("b.txt", b"two")]
"""Headers at bytes 0, 1536, 2560 and 3584; the last payload and its padding end at 4608, all ends at 10240."""


@pytest.mark.parametrize("stop", [4608 - 100, 4608, 3584, 2560, 2560 - 100])
def test_a_tar_that_is_cut_in_padding_or_between_members_says_so(tmp_path, stop):
    assert _cut(tmp_path, stop, ROWS) == [
        f"the tar ends at byte {stop} without the mark of its end, so it is probably cut"
    ]
    assert unread_bytes(_index(tmp_path)) == {str(tmp_path / "a.tar"): 0}


@pytest.mark.parametrize("stop", [4608 + 1, 4608 + 512, 4608 + 700, 10240])
def test_a_tar_that_is_cut_in_the_zeros_at_its_end_is_whole(tmp_path, stop):
    assert _cut(tmp_path, stop, ROWS) == []


@pytest.mark.parametrize(("stop", "lost"), [(4608 + 600, 600), (4608 + 1000, 1000), (4608 + 2000, 2000)])
def test_a_tar_that_is_cut_in_what_is_no_row_says_so(tmp_path, stop, lost):
    reasons = _cut(tmp_path, stop, [*ROWS, ("README", bytes(900)), ("n" * 150 + ".jpg", b"c")])
    assert len(reasons) == 1 and reasons[0].endswith("; the rest of the shard is not used")
    assert unread_bytes(_index(tmp_path)) == {str(tmp_path / "a.tar"): lost}


@pytest.mark.parametrize(("kind", "word"), [(tarfile.LNKTYPE, "hard link"), (tarfile.SYMTYPE, "symbolic link")])
def test_images_and_captions_that_are_links_are_bad_rows_and_none_is_lost(tmp_path, kind, word):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name in ("a.jpg", "a.txt", "b.jpg", "b.txt", "c.jpg", "d.jpg", "d.txt", "e.json"):
            member = tarfile.TarInfo(name)
            is_link = name in ("b.jpg", "c.jpg", "d.txt", "e.json")
            member.type, member.linkname = (kind, "a.jpg") if is_link else (tarfile.REGTYPE, "")
            member.size = 0 if is_link else 1
            file.addfile(member, None if is_link else io.BytesIO(b"x"))
    index = _index(tmp_path)
    rows = [row for number in range(len(index.chunks.rows)) for row in index.read(number)]
    assert [(row["key"], bool(row["error"])) for row in rows] == [
        ("a", False), ("b", True), ("c", True), ("d", True), ("e", True),
    ]  # fmt: skip
    assert f"the image is a {word}" in rows[1]["error"] and f"the member txt is a {word}" in rows[3]["error"]
    assert [row["key"] for row in index.rejects.to_pylist()] == ["b", "c", "e"]


@pytest.mark.parametrize("blocks", [1, 2, 4, 6])
def test_a_hole_of_zeros_between_rows_is_named_with_the_bytes_behind_it(tmp_path, blocks):
    write_pairs(tmp_path / "a.tar", rows=3)
    content = bytearray((tmp_path / "a.tar").read_bytes())
    place = content.index(b"00001.txt")
    content[place : place + 512 * blocks] = bytes(512 * blocks)
    (tmp_path / "a.tar").write_bytes(content)
    index = _index(tmp_path)
    (reject,) = index.rejects.to_pylist()
    assert reject["reason"].startswith(f"bytes {place} to {place + 512 * blocks} are zeros where rows should be")
    assert unread_bytes(index) == {str(tmp_path / "a.tar"): len(content) - place}


def test_a_large_hole_at_the_end_is_named_because_a_file_may_not_be_written_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(tar, "MOST_ZEROS", 20480)
    write_pairs(tmp_path / "a.tar", rows=3)
    content = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(content + bytes(20480))
    (reject,) = _index(tmp_path).rejects.to_pylist()
    assert "there are zeros from byte" in reject["reason"] and _index(tmp_path).rows == 3
