"""Rows without their images are the rows of every format, and the sample of a source is spread and small."""

from pathlib import Path

import pytest
from writers import jpeg, pair, write_folder, write_pairs, write_parquet, write_tar

from tips_ray import storage
from tips_ray.config import DataConfig
from tips_ray.data import sources
from tips_ray.data.caption_sample import ROWS_OF_CHUNK, SAMPLED_CHUNKS, bad_rows, sampled_rows, warnings
from tips_ray.data.index import Index, build_index

ROWS = 5
NAMES = [f"{n}.jpg" for n in range(ROWS)]


def _index(folder: Path, chunk_rows: int = 2) -> Index:
    return build_index(DataConfig.model_validate({"sources": [{"uri": str(folder)}], "chunk_rows": chunk_rows}))


def _write(folder: Path, kind: str) -> None:
    if kind == "tar":
        write_tar(
            folder / "0.tar", [member for n in range(ROWS) for member in pair(f"{n}", n, f"dog {n}", re_caption="m")]
        )
    elif kind == "parquet":
        images, made = [jpeg(n) for n in range(ROWS)], ["m"] * ROWS
        columns = {"image": images, "caption": [f"dog {n}" for n in range(ROWS)], "re_caption": made}
        write_parquet(folder / "0.parquet", columns)
    elif kind == "paths":
        write_folder(folder, NAMES, [""], "notes.txt")
        write_parquet(folder / "0.parquet", {"image_path": NAMES, "caption": [f"dog {n}" for n in range(ROWS)]})
    elif kind == "folder":
        lines = [line for n in range(ROWS) for line in (f"{n}.jpg,dog {n}", f"{n}.jpg,m")]
        write_folder(folder, NAMES, ["image,caption", *lines])
    else:
        write_folder(folder, NAMES, ["dog 0"], "0.txt")
        for n in range(1, ROWS):
            (folder / f"{n}.txt").write_text(f"dog {n}")


@pytest.mark.parametrize("kind", ["tar", "parquet", "paths", "folder", "pairs"])
def test_rows_without_their_images_are_the_rows_of_the_chunk(tmp_path, kind, monkeypatch):
    _write(tmp_path, kind)
    index = _index(tmp_path)
    read, read_bytes = [], storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", lambda *place: read.append(place[0]) or read_bytes(*place))
    for number in range(len(index.chunks.rows)):
        shard, columns = index.shard(int(index.chunks.shard[number]))
        found = sources.read_captions(shard, index.chunk(number), columns)
        assert not any(str(place).endswith(".jpg") for place in read)
        assert found == [{**row, "image": b""} for row in index.read(number)] and len(found) in (1, 2)
        read.clear()


def test_a_row_whose_captions_cannot_be_read_has_its_error_without_the_image(tmp_path):
    write_tar(tmp_path / "0.tar", [*pair("a", 0, "dog"), ("b.jpg", jpeg(1)), ("b.txt", b"\xff"), ("c.txt", b"dog")])
    rows = sampled_rows(_index(tmp_path), 0)
    assert [row["error"][:20] for row in rows] == ["", "its text cannot be r", "no image: none of jp"]


def test_bad_rows_among_those_that_were_read_are_counted_with_the_commonest_reason_and_a_row(tmp_path):
    members = [("b.jpg", jpeg(1)), ("b.txt", b"\xff"), ("c.txt", b"dog"), ("d.jpg", jpeg(3)), ("d.txt", b"dog \xfe")]
    write_tar(tmp_path / "0.tar", [*pair("a", 0, "dog"), *members])
    index = _index(tmp_path)
    found = bad_rows(index, sampled_rows(index, 0))
    assert found.startswith("3 of 4 rows that were looked at are bad: its text cannot be read: ")
    assert found.endswith(" (b); 1 for other reasons") and bad_rows(index, index.first_rows(0)[:1]) == ""


def test_a_damaged_row_group_is_passed_over(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"image": [bytes(900)] * 4, "caption": list("wxyz")}, row_group_size=2)
    index = _index(tmp_path)
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    content[4 : content.index(b"PAR1", 4) // 3] = b"\xff" * (content.index(b"PAR1", 4) // 3 - 4)
    (tmp_path / "x.parquet").write_bytes(content)
    assert [row["sample_id"] for row in sampled_rows(index, 0)] == [2, 3]


def test_the_sample_is_spread_over_all_shards_and_small(tmp_path):
    for number in range(30):
        write_pairs(tmp_path / f"{number:02d}.tar", rows=4, first=4 * number)
    found = [row["sample_id"] // 2 for row in sampled_rows(_index(tmp_path), 0)[::2]]
    assert found == [0, 8, 17, 25, 34, 42, 51, 59] and len(found) == SAMPLED_CHUNKS
    (tmp_path / "x").mkdir()
    write_folder(tmp_path / "x", ["a.jpg"], ["image,caption", *(f"{n}.jpg,dog {n}" for n in range(1000)), "a.jpg,x"])
    rows = sampled_rows(_index(tmp_path / "x", chunk_rows=2000), 0)
    assert len(rows) == ROWS_OF_CHUNK and (rows[0]["key"], rows[-1]["key"]) == ("0.jpg", "a.jpg")


def test_web_and_synthetic_captions_are_judged_apart(tmp_path):
    members = (pair(f"{n}", n, f"a dog of house {n}", re_caption=f"IMG_{n:04d}.jpg") for n in range(4))
    write_tar(tmp_path / "0.tar", [member for row in members for member in row])
    index = _index(tmp_path)
    (told,) = warnings(index, sampled_rows(index, 0))
    assert told.startswith(
        "4 of 4 sampled synthetic captions look like file names or addresses, e.g. 'IMG_0000.jpg' of 0;"
    )
