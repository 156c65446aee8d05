"""Data are the same wherever they lie: an index knows them by names, sizes and contents."""

import json
import os
import shutil
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from writers import jpeg, write_folder, write_pairs, write_parquet

from tips_ray.config import DataConfig
from tips_ray.data import index_folder
from tips_ray.data.captions.join import captioned_shard, missing_chunks, read_captions
from tips_ray.data.captions.store import CaptionStore, ChunkCaptions
from tips_ray.data.index import Index, build_index, listing_mark, run_order
from tips_ray.data.index_folder import index_of, read_index, write_index
from tips_ray.data.sources.content import BLOCK_BYTES, file_content, name_below
from tips_ray.storage import stat


def _data(root: Path, **options) -> DataConfig:
    uris = [f"{root}/{name}" for name in ("tars/*.tar", "tables", "photos", "beside")]
    return DataConfig.model_validate({"sources": [{"uri": uri} for uri in uris], "chunk_rows": 4, **options})


@pytest.fixture
def root(tmp_path) -> Path:
    """Tars, a Parquet file, a folder with its table, and images beside their captions."""
    root = tmp_path / "one disk"
    write_pairs(root / "tars" / "b.tar", rows=6)
    write_pairs(root / "tars" / "a.tar", rows=7, first=6)
    write_parquet(root / "tables" / "x.parquet", {"image": [b"x"] * 7, "caption": list("abcdefg")}, row_group_size=5)
    write_folder(root / "photos", ["a.jpg", "b.jpg"], ["image,caption", "a.jpg,a", "gone.jpg,gone", "b.jpg,b"])
    (root / "beside").mkdir()
    for number, name in enumerate("kl"):
        (root / "beside" / f"{name}.jpg").write_bytes(jpeg(number))
        (root / "beside" / f"{name}.txt").write_text(name)
    return root


def _moved(root: Path, place: Path) -> Path:
    shutil.copytree(root, place, copy_function=shutil.copy)  # times of change are new
    shutil.rmtree(root)
    return place


def _touch(root: Path) -> None:
    later = time.time() + 9
    for path in root.rglob("*"):
        os.utime(path, (later, later))


@pytest.mark.parametrize("how", ["moved", "touched", "linked"])
def test_data_at_another_place_are_the_same_data_and_have_the_same_order(root, tmp_path, how):
    before = build_index(_data(root))
    if how == "touched":
        _touch(root)
    elif how == "moved":
        root = _moved(root, tmp_path / "other" / "disk")
    else:
        (tmp_path / "link").symlink_to(root)
        root = tmp_path / "link"
    after = build_index(_data(root))
    assert after.fingerprint == before.fingerprint and after.listing != before.listing
    assert all(map(np.array_equal, after.chunks, before.chunks))
    assert after.shards.drop_columns(["path", "etag"]).equals(before.shards.drop_columns(["path", "etag"]))
    rows = run_order(after, _data(root), seed=1, global_batch_images=8).batch(3)
    assert np.array_equal(rows.sample_id_N, run_order(before, _data(root), 1, 8).batch(3).sample_id_N)
    assert all(len(after.read(number)) == rows for number, rows in enumerate(after.chunks.rows.tolist()))


@pytest.mark.parametrize(
    "path", ["tars/a.tar", "tables/x.parquet", "photos/b.jpg", "photos/captions.csv", "beside/k.txt"]
)
def test_one_other_byte_makes_other_data_of_the_same_size(root, path):
    before = build_index(_data(root)).fingerprint
    content = bytearray((root / path).read_bytes())
    content[-20 if path.endswith("parquet") else 0 if path.startswith("beside") else -1] ^= 1
    after = _fingerprint_if_readable(root, path, bytes(content))
    assert after != before


def _fingerprint_if_readable(root: Path, path: str, content: bytes) -> str:
    (root / path).write_bytes(content)
    try:
        return build_index(_data(root)).fingerprint
    except ValueError as error:  # a damaged Parquet footer
        return str(error)


def test_a_file_is_known_by_its_ends_and_its_size(tmp_path):
    path = tmp_path / "x.tar"

    def content(change: int | None = None, size: int = 3 * BLOCK_BYTES) -> str:
        data = bytearray(size)
        if change is not None:
            data[change] = 1
        path.write_bytes(data)
        return file_content(stat(str(path)))

    same = content()
    assert content(0) != same and content(-1) != same and content(size=3 * BLOCK_BYTES + 1) != same
    assert content(BLOCK_BYTES + 5) == same, "what lies between the ends is not read"
    assert content(BLOCK_BYTES + 5, 2 * BLOCK_BYTES) != content(size=2 * BLOCK_BYTES), "a short file is read whole"


@pytest.mark.parametrize(
    ("uri", "path", "name"),
    [
        ("/d", "/d/train/0.tar", "train/0.tar"),
        ("/d/*.tar", "/d/0.tar", "0.tar"),
        ("/d/{train,val}/{0..1}.tar", "/d/val/1.tar", "val/1.tar"),
        ("/d/**/*.tar", "/d/a/b/1.tar", "a/b/1.tar"),
        ("/d/0.tar", "/d/0.tar", "0.tar"),
        ("s3://bucket/d", "s3://bucket/d/0.tar", "0.tar"),
        ("s3://bucket/{a,b}/*.tar", "s3://bucket/a/0.tar", "a/0.tar"),
        ("/d", "/d/e\u0301.tar", "\u00e9.tar"),
    ],
)
def test_a_shard_has_its_name_below_the_source(uri, path, name):
    assert name_below(uri, path, "webdataset") == name


def test_a_folder_of_images_that_is_the_source_itself_has_the_same_name_everywhere():
    assert name_below("/d/one", "/d/one", "pairs") == name_below("/e", "/e", "pairs") == "."


def test_an_index_that_is_named_goes_on_where_its_data_moved(root, tmp_path):
    named = f"{tmp_path}/index"
    before = index_of(_data(root, index=named), f"{tmp_path}/indexes")
    assert before.uri == named
    root = _moved(root, tmp_path / "other")
    data = _data(root, index=named)
    after = index_of(data, f"{tmp_path}/indexes")
    assert after.fingerprint == before.fingerprint and after.uri == f"{tmp_path}/indexes/{listing_mark(data)}"
    assert {row["path"].startswith(f"{root}/") for row in after.shards.to_pylist()} == {True}
    assert index_of(data, f"{tmp_path}/indexes").uri == after.uri and read_index(named).listing == before.listing


def _as_version_1(index: Index, uri: str, rows: int = 0) -> None:
    """Write an index as version 1 did; with `rows`, its first chunk has so many rows less."""
    write_index(index, uri)
    path = Path(uri) / "index.json"
    head = json.loads(path.read_text())
    head |= {"version": 1, "fingerprint": head["earlier"]}
    path.write_text(json.dumps({key: value for key, value in head.items() if key not in ("listing", "earlier")}))
    if rows:
        index.chunks.rows[0] -= rows
        write_index(index, f"{uri}-changed")
        shutil.copy(f"{uri}-changed/chunks.parquet", f"{uri}/chunks.parquet")


@pytest.mark.parametrize("is_named", [False, True])
def test_an_index_of_version_1_is_made_anew_and_its_runs_go_on(root, tmp_path, is_named):
    index = build_index(_data(root))
    uri = f"{tmp_path}/index" if is_named else f"{tmp_path}/indexes/{index.earlier}"
    _as_version_1(index, uri)
    data = _data(root, index=uri if is_named else None)
    after = index_of(data, f"{tmp_path}/indexes")
    assert after.fingerprint == index.fingerprint and after.earlier == index.earlier == listing_mark(data, version=1)
    assert read_index(after.uri).earlier == index.earlier and (after.uri == uri) == is_named


def test_rows_that_version_1_read_otherwise_are_told_and_not_taken_for_the_same(root, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(index_folder.log, "warning", lambda *words: told.append(words[0]))
    index = build_index(_data(root))
    earlier = index.earlier
    _as_version_1(index, f"{tmp_path}/indexes/{earlier}", rows=1)
    after = index_of(_data(root), f"{tmp_path}/indexes")
    assert after.earlier == "" and "runs that it began cannot go on" in told[0]


def test_a_named_index_of_version_1_of_other_data_is_refused_and_kept(root, tmp_path):
    _as_version_1(build_index(_data(root)), uri := f"{tmp_path}/index")
    _touch(root)
    with pytest.raises(ValueError, match="not those of the index at .*/index, of an earlier version"):
        index_of(_data(root, index=uri), f"{tmp_path}/indexes")
    assert read_index(uri).listing == ""


def _chunk(index: Index, number: int) -> ChunkCaptions:
    rows = int(index.chunks.rows[number])
    return ChunkCaptions(int(index.chunks.row[number]), [bytes(32)] * rows, [["a"]] * rows, [""] * rows)


def test_captions_are_found_where_the_data_moved(root, tmp_path):
    index, store = build_index(_data(root)), CaptionStore(f"{tmp_path}/captions", "0" * 16)
    store.write(captioned_shard(index, 0), 1, _chunk(index, 1))
    after = build_index(_data(_moved(root, tmp_path / "other")))
    assert read_captions(after, [1], store)[1].captions == [["a"]] * 3
    assert missing_chunks(after, store).tolist() == [0, *range(2, len(index.chunks.rows))]


def test_captions_of_version_1_are_found_and_completed_under_their_old_name(root, tmp_path):
    index, store = build_index(_data(root)), CaptionStore(f"{tmp_path}/captions", "0" * 16)
    shard = captioned_shard(index, 0)
    before = replace(shard, content="")
    assert before.name != shard.name and store.write(before, 1, _chunk(index, 1))
    assert read_captions(index, [1], store)[1].captions == [["a"]] * 3
    assert store.write(shard, 0, _chunk(index, 0)) and not store.write(shard, 1, _chunk(index, 1))
    assert store.shard_names() == [before.name] and store.present(shard) == {0, 1}
