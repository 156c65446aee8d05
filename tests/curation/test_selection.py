"""Selections: rows of other shards without copies, the same at every site; what is gone or changed is a bad row."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from writers import jpeg, pair, write_folder, write_parquet, write_tar

from tips_ray.config import ColumnsConfig, DataConfig, SourceConfig
from tips_ray.curation.lock import CAPTION, IMAGE, MISSING, THERE, Site
from tips_ray.curation.selection import SelectionWriter, parts, read_lock, read_parts, write_places
from tips_ray.data import sources
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index, build_index, run_order
from tips_ray.data.index_folder import index_of
from tips_ray.data.sources.left_out import left_out
from tips_ray.data.sources.selection import ABSENT, CAPTION_CHANGED, IMAGE_CHANGED, captions_digest, faults

ROWS = 150


def _raw(folder: Path, numbers: range = range(ROWS), caption: str = "web {}") -> None:
    half = len(numbers) // 2
    for name, part in (("a", numbers[:half]), ("b", numbers[half:])):
        members = [pair(f"{n:05d}", n, caption.format(n), re_caption=f"made {n}", size=n / 2) for n in part]
        write_tar(folder / f"{name}.tar", [member for row in members for member in row])


def _index(folder: Path, chunk_rows: int = 16) -> Index:
    return build_index(DataConfig(sources=(SourceConfig(uri=str(folder)),), chunk_rows=chunk_rows))


def _rows(index: Index) -> list[SourceRow]:
    return [row for chunk in range(len(index.chunks.rows)) for row in index.read(chunk)]


def _signals(index: Index) -> pa.Table:
    rows = _rows(index)
    columns = {"sample_id": [row["sample_id"] for row in rows], "key": [row["key"] for row in rows]}
    columns |= {"error": [row["error"] for row in rows]}
    columns |= {"image_sha256": pa.array([hashlib.sha256(row["image"]).digest() for row in rows], pa.binary(32))}
    columns |= {"captions_sha256": pa.array([captions_digest(row) for row in rows], pa.binary(16))}
    return pa.table(columns)


def _select(raw: Path, out: Path, kept: list[int]) -> dict:
    index = _index(raw)
    is_kept_N = np.isin(np.arange(index.rows), kept)
    writer = SelectionWriter(str(out), index.sources[0].columns)
    for number, part in enumerate(parts(index, [_signals(index)], is_kept_N)):
        writer.write(number, part)
    return writer.close({"source": str(raw)})


KEPT = [0, 3, 4, 20, 74, 75, 76, 100, 149]


@pytest.fixture
def selected(tmp_path: Path) -> Path:
    _raw(tmp_path / "raw")
    _select(tmp_path / "raw", tmp_path / "chosen", KEPT)
    return tmp_path / "chosen"


def test_a_selection_is_read_as_the_rows_it_names(selected):
    index = _index(selected, chunk_rows=4)
    assert [tuple(index.chunk(number)[:4]) for number in range(3)] == [(0, 4, 0, 0), (4, 4, 0, 4), (8, 1, 0, 8)]
    rows = _rows(index)
    assert [row["key"] for row in rows] == [f"{n:05d}" for n in KEPT]
    assert [row["image"] for row in rows] == [jpeg(n) for n in KEPT]
    assert [(row["web_caption"], row["synthetic_captions"]) for row in rows] == [
        (f"web {n}", [f"made {n}"]) for n in KEPT
    ]
    assert [row["sample_id"] for row in rows] == list(range(len(KEPT)))
    assert not any(row["error"] for row in rows)


def test_captions_and_fields_are_read_without_images(selected):
    index = _index(selected)
    (shard,) = index.shards_of(0)
    columns = index.sources[0].columns
    captions = sources.read_captions(shard, index.chunk(0), columns)
    assert [(row["web_caption"], row["image"]) for row in captions] == [(f"web {n}", b"") for n in KEPT]
    fields = sources.read_fields(shard, index.chunk(0), columns, ["size"])
    assert [row["size"] for row in fields] == [n / 2 for n in KEPT]


def test_each_chunk_of_a_shard_is_read_once(selected, monkeypatch):
    index, read = _index(selected), []
    kind = sources.selection.FORMATS["webdataset"]
    real = kind.read_chunk
    monkeypatch.setattr(
        kind, "read_chunk", lambda shard, chunk, columns: read.append(chunk.row) or real(shard, chunk, columns)
    )
    index.read(0)
    assert read == [0, 16, 64, 0, 16, 64]  # of a.tar, then of b.tar: rows 75, 76; 100; 149


@pytest.mark.parametrize("kind", ["parquet", "folder", "pairs"])
def test_rows_of_every_format_can_be_chosen(tmp_path, kind):
    raw = tmp_path / "raw"
    if kind == "parquet":
        write_parquet(
            raw / "x.parquet", {"image": [jpeg(n) for n in range(9)], "caption": [f"web {n}" for n in range(9)]}
        )
    elif kind == "folder":
        write_folder(raw, [f"{n}.jpg" for n in range(9)], ["image,caption", *(f"{n}.jpg,web {n}" for n in range(9))])
    else:
        raw.mkdir()
        for n in range(9):
            (raw / f"{n}.jpg").write_bytes(jpeg(n))
            (raw / f"{n}.txt").write_text(f"web {n}")
    _select(raw, tmp_path / "chosen", [1, 5, 8])
    rows = _rows(_index(tmp_path / "chosen"))
    assert [(row["image"], row["web_caption"], row["error"]) for row in rows] == [
        (jpeg(n), f"web {n}", "") for n in (1, 5, 8)
    ]


def test_what_changed_or_went_after_the_choice_is_a_bad_row(selected, tmp_path):
    def changed(n: int) -> list[tuple[str, bytes]]:
        caption = "another" if n == 3 else f"web {n}"
        return pair(f"{n:05d}", 99 if n == 4 else n, caption, re_caption=f"made {n}", size=n / 2)

    # of the same sizes, as after a download that gave another picture
    members = [member for n in range(75) for member in changed(n)]
    before = (tmp_path / "raw" / "a.tar").stat().st_size
    write_tar(tmp_path / "raw" / "a.tar", members)
    assert (tmp_path / "raw" / "a.tar").stat().st_size == before
    errors = {row["key"]: row["error"] for row in _rows(_index(selected))}
    assert (errors["00003"], errors["00004"]) == (CAPTION_CHANGED, IMAGE_CHANGED)
    assert sum(bool(error) for error in errors.values()) == 2


def test_rows_of_a_shard_that_is_gone_are_named_and_a_run_stops(selected, tmp_path):
    index = _index(selected)
    (shard,) = index.shards_of(0)
    (tmp_path / "raw" / "a.tar").rename(tmp_path / "raw" / "a.gone")
    found = faults(shard, index.chunk(0), index.sources[0].columns)
    assert [bool(fault) for fault in found] == [n < 75 for n in KEPT] and set(found) == {"", ABSENT}
    with pytest.raises(ValueError, match="a.tar"):
        index.read(0)


def test_the_same_rows_give_the_same_bytes_and_another_choice_another_order(tmp_path):
    _raw(tmp_path / "raw")
    locks = [
        _select(tmp_path / "raw", tmp_path / name, kept) for name, kept in (("a", KEPT), ("b", KEPT), ("c", KEPT[1:]))
    ]
    assert locks[0] == locks[1] and locks[0]["order_sha256"] != locks[2]["order_sha256"]
    for name in ("000000.rows", "000000.places", "lock.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_shorter_selection_leaves_nothing_of_a_longer_one(tmp_path, monkeypatch):
    monkeypatch.setattr("tips_ray.curation.selection.FILE_ROWS", 4)
    _raw(tmp_path / "raw")
    _select(tmp_path / "raw", tmp_path / "chosen", KEPT)
    assert len(list((tmp_path / "chosen").glob("*.rows"))) == 3
    _select(tmp_path / "raw", tmp_path / "chosen", KEPT[:5])
    assert sorted(path.name for path in (tmp_path / "chosen").iterdir()) == [
        "000000.places", "000000.rows", "000001.places", "000001.rows", "lock.json"
    ]  # fmt: skip
    assert [row["key"] for row in _rows(_index(tmp_path / "chosen"))] == [f"{n:05d}" for n in KEPT[:5]]


def test_no_file_of_a_selection_is_left_out_and_its_columns_are_its_own(selected):
    index = _index(selected)
    assert left_out(str(selected), index.shards_of(0), index.sources[0].columns) == []
    with pytest.raises(ValueError, match="leave columns.web_caption out: a selection has the columns"):
        build_index(DataConfig(sources=(SourceConfig(uri=str(selected), columns=ColumnsConfig(web_caption="txt")),)))


def test_damaged_files_are_named(selected):
    index = _index(selected)
    content = bytearray((selected / "000000.rows").read_bytes())
    content[60:90] = bytes(30)
    (selected / "000000.rows").write_bytes(content)
    with pytest.raises(ValueError, match="000000.rows or its places are damaged"):
        index.read(0)
    with pytest.raises(ValueError, match="000000.rows is not the file that the lock names"):
        list(read_parts(read_lock(str(selected))))
    (selected / "lock.json").write_text("{")
    with pytest.raises(ValueError, match="is no lock of a selection"):
        read_lock(str(selected))
    with pytest.raises(ValueError, match="there is no lock.json of a selection"):
        read_lock(str(selected / "nowhere"))


def test_another_site_trains_on_what_it_has_in_the_same_order(selected, tmp_path):
    """The other site has other shards: rows 3 is gone, 4 has another caption, 20 another image under its key."""
    there = [n for n in reversed(range(ROWS)) if n != 3]
    captions = [f"web {n}" if n != 4 else "new words" for n in there]
    images = [jpeg(n if n != 20 else 251) for n in there]
    table = {"image": images, "caption": captions, "re_caption": [f"made {n}" for n in there]}
    write_parquet(tmp_path / "site" / "x.parquet", table | {"key": [f"{n:05d}" for n in there]})
    index = _index(tmp_path / "site", chunk_rows=7)
    lock = read_lock(str(selected))
    ((name, part),) = read_parts(lock)
    state_M, places = Site(index, _signals(index)).compare(part.rows)
    assert state_M.tolist() == [THERE, MISSING, CAPTION, IMAGE, *[THERE] * 5]
    here = tmp_path / "here"
    write_places(str(here), name, places, index.sources[0].columns)
    (here / "000000.rows").write_bytes((selected / "000000.rows").read_bytes())
    (here / "lock.json").write_bytes((selected / "lock.json").read_bytes())
    first, second = (_index(place, chunk_rows=4) for place in (selected, here))
    assert first.fingerprint == second.fingerprint
    orders = [run_order(one, DataConfig(sources=(SourceConfig(uri="x"),)), 3, 4) for one in (first, second)]
    ids = [[order.window_rows(w).sample_id_N.tolist() for w in range(2)] for order in orders]
    assert ids[0] == ids[1]
    rows = _rows(second)
    assert [row["error"] for row in rows] == ["", ABSENT, CAPTION_CHANGED, ABSENT, *[""] * 5]
    assert [row["image"] for row in rows if not row["error"]] == [jpeg(n) for n in KEPT if n not in (3, 4, 20)]


def test_an_index_of_a_selection_is_found_again(selected, tmp_path):
    data = DataConfig(sources=(SourceConfig(uri=str(selected)),))
    first = index_of(data, str(tmp_path / "index"))
    assert index_of(data, str(tmp_path / "index")).fingerprint == first.fingerprint
    assert first.sources[0].format == "selection"
