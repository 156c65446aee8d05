import argparse
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from writers import pair, write_folder, write_pairs, write_parquet, write_tar

from jobs import index as job
from tips_ray import storage
from tips_ray.config import DataConfig
from tips_ray.data.index import Index, build_index, listing_mark, run_order
from tips_ray.data.index_folder import check_places, index_of, read_index, write_index
from tips_ray.storage import NotFoundError

ROOT = Path(__file__).parents[2]


def _data(*uris, **options) -> DataConfig:
    return DataConfig.model_validate({"sources": [{"uri": str(uri)} for uri in uris], "chunk_rows": 4, **options})


@pytest.fixture
def data(tmp_path) -> DataConfig:
    """13 rows in two tars, 7 in a Parquet file, 3 in a folder."""
    write_pairs(tmp_path / "tars" / "b.tar", rows=6)
    write_pairs(tmp_path / "tars" / "a.tar", rows=7, first=6)
    write_parquet(
        tmp_path / "tables" / "x.parquet", {"image": [b"x"] * 7, "caption": list("abcdefg")}, row_group_size=5
    )
    write_folder(tmp_path / "photos", ["a.jpg", "b.jpg"], ["image,caption", "a.jpg,a", "gone.jpg,gone", "b.jpg,b"])
    return _data(tmp_path / "tars", tmp_path / "tables", tmp_path / "photos")


def _same(one: Index, other: Index) -> bool:
    tables = one.shards.equals(other.shards) and one.rejects.equals(other.rejects)
    chunks = all(map(np.array_equal, one.chunks, other.chunks))
    return tables and chunks and (one.fingerprint, one.sources) == (other.fingerprint, other.sources)


def test_shards_are_in_order_and_samples_are_numbered_through(data):
    index = build_index(data)
    shards = index.shards.to_pylist()
    assert [Path(shard["path"]).name for shard in shards] == ["a.tar", "b.tar", "x.parquet", "captions.csv"]
    assert [(shard["source"], shard["rows"], shard["first_sample"]) for shard in shards] == [
        (0, 7, 0), (0, 6, 7), (1, 7, 13), (2, 3, 20),
    ]  # fmt: skip
    chunks = index.chunks
    assert chunks.shard.tolist() == [0, 0, 1, 1, 2, 2, 2, 3]
    assert chunks.rows.tolist() == [4, 3, 4, 2, 4, 1, 2, 3]
    assert chunks.first_sample.tolist() == [0, 4, 7, 11, 13, 17, 18, 20]
    assert index.rows == 23 and [source.rows for source in index.sources] == [13, 7, 3]


def test_a_chunk_is_read_with_its_sample_ids(data):
    index = build_index(data)
    rows = [row for number in range(len(index.chunks.rows)) for row in index.read(number)]
    assert [row["sample_id"] for row in rows] == list(range(23))
    assert rows[0]["key"] == "00006" and rows[7]["key"] == "00000" and rows[13]["web_caption"] == "a"


def test_every_sample_id_leads_back_to_its_row(data):
    index = build_index(data)
    places = [index.sample(number) for number in range(23)]
    assert [row for _, row in places] == [*range(7), *range(6), *range(7), *range(3)]
    assert [Path(shard.path).name for shard, _ in places[5:8]] == ["a.tar", "a.tar", "b.tar"]
    for outside in (-1, 23):
        with pytest.raises(ValueError, match="must lie in 0..22"):
            index.sample(outside)


def test_an_index_is_the_same_whoever_looks_through_the_shards(data):
    def backwards(function, jobs):
        return reversed([function(job) for job in reversed(jobs)])

    assert _same(build_index(data), build_index(data, backwards))


def test_an_index_comes_back_as_it_was_written(data, tmp_path):
    index = build_index(data)
    write_index(index, f"{tmp_path}/index")
    assert _same(read_index(f"{tmp_path}/index"), index)
    head = json.loads((tmp_path / "index" / "index.json").read_text())
    assert (head["version"], head["rows"], head["chunk_rows"]) == (2, 23, 4)
    assert head["sources"][0]["columns"]["synthetic_captions"] == ["re_caption"]


def test_the_files_of_an_index_have_the_documented_columns(data, tmp_path):
    write_index(build_index(data), f"{tmp_path}/index")
    index = read_index(f"{tmp_path}/index")
    assert index.shards.schema.to_string().split("\n") == [
        "source: int16", "path: string", "rows: int64", "first_sample: int64", "bytes: int64", "etag: string",
        "name: string", "content: string", "unused_images: int64", "unused_image: string",
    ]  # fmt: skip
    assert [column.dtype.name for column in index.chunks] == ["int32", "int64", "int32", "int64", "int64", "int64"]
    assert index.rejects.to_pylist() == [
        {
            "path": f"{tmp_path}/photos/captions.csv",
            "row": 1,
            "key": "gone.jpg",
            "reason": "there is no such image file",
        }
    ]


def test_an_index_is_built_once_and_found_again(data, tmp_path):
    index = index_of(data, f"{tmp_path}/indexes")
    written = tmp_path / "indexes" / listing_mark(data) / "index.json"
    before = written.stat().st_mtime_ns
    assert _same(index_of(data, f"{tmp_path}/indexes"), index) and written.stat().st_mtime_ns == before


def test_without_its_last_file_there_is_no_index(data, tmp_path):
    write_index(build_index(data), f"{tmp_path}/index")
    (tmp_path / "index" / "index.json").unlink()
    with pytest.raises(NotFoundError, match="index.json"):
        read_index(f"{tmp_path}/index")


def test_an_index_of_another_version_is_refused(data, tmp_path):
    write_index(build_index(data), f"{tmp_path}/index")
    path = tmp_path / "index" / "index.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 3'))
    with pytest.raises(ValueError, match="index version 3, this program reads up to version 2"):
        read_index(f"{tmp_path}/index")


@pytest.mark.parametrize("change", ["changed", "vanished", "appeared"])
def test_data_that_changed_under_a_named_index_are_refused_by_name(data, tmp_path, change):
    data = data.model_copy(update={"index": f"{tmp_path}/index"})
    index_of(data, f"{tmp_path}/indexes")
    path = tmp_path / "tars" / ("c.tar" if change == "appeared" else "b.tar")
    path.unlink() if change == "vanished" else write_pairs(path, rows=8)
    with pytest.raises(ValueError, match=f"{path} {change} since the data were indexed"):
        index_of(data, f"{tmp_path}/indexes")


def test_a_photo_that_changed_is_noticed_too(data, tmp_path):
    data = data.model_copy(update={"index": f"{tmp_path}/index"})
    index_of(data, f"{tmp_path}/indexes")
    photo = tmp_path / "photos" / "b.jpg"
    photo.write_bytes(photo.read_bytes()[::-1])
    with pytest.raises(ValueError, match="captions.csv changed"):
        index_of(data, f"{tmp_path}/indexes")


def test_an_index_with_other_chunks_or_columns_is_refused(data, tmp_path):
    data = data.model_copy(update={"index": f"{tmp_path}/index"})
    check_places(index_of(data, f"{tmp_path}/indexes"), data)
    with pytest.raises(ValueError, match=r"data.chunk_rows \(5\) must be that of the index \(4\)"):
        index_of(data.model_copy(update={"chunk_rows": 5}), f"{tmp_path}/indexes")
    other = data.model_dump()
    other["sources"][1]["columns"]["key"] = "caption"
    with pytest.raises(ValueError, match="other formats or columns"):
        index_of(DataConfig.model_validate(other), f"{tmp_path}/indexes")


def test_the_listing_tells_places_apart_and_nothing_else(data, tmp_path):
    before = listing_mark(data)
    assert build_index(data).listing == before == listing_mark(data)
    assert listing_mark(data.model_copy(update={"window_chunks": 9})) == before
    assert listing_mark(data.model_copy(update={"chunk_rows": 9})) != before
    write_pairs(tmp_path / "tars" / "b.tar", rows=6)
    assert listing_mark(data) != before, "written again: the time of change stands for the content"


@pytest.mark.parametrize(
    ("name", "content"),
    [("index.json", b"{"), ("index.json", b"[]"), ("index.json", b"{}"), ("chunks.parquet", b"PAR")],
)
def test_a_damaged_index_is_named(data, tmp_path, name, content):
    write_index(build_index(data), uri := str(tmp_path / "index"))
    (tmp_path / "index" / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{uri} is no whole index \(.*\); delete it, and it is made again"):
        read_index(uri)


def test_a_source_without_rows_is_refused(tmp_path):
    write_parquet(tmp_path / "x.parquet", {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())})
    with pytest.raises(ValueError, match=f"{tmp_path}/x.parquet: there are no rows in it"):
        build_index(_data(tmp_path))


def test_an_error_in_one_shard_stops_the_others(tmp_path):
    for number in range(60):
        write_tar(tmp_path / f"{number:02d}.tar", pair("a", 0, "x") if number != 1 else [("a.jpg", b"x")])
    with pytest.raises(ValueError, match="01.tar: columns.web_caption is 'txt'"):
        build_index(_data(tmp_path))
    assert threading.active_count() < 10


def test_the_order_of_a_run_takes_weights_from_the_config(data):
    index = build_index(data)
    weighted = data.model_dump()
    weighted["sources"][1]["weight"] = 2.0
    order = run_order(index, DataConfig.model_validate(weighted), seed=0, global_batch_images=4)
    drawn = order.rows(0, order.epoch_start(7)).sample_id_N
    assert abs(((drawn >= 13) & (drawn < 20)).sum() - 7 * 13 * 2) <= 5  # a chunk has up to 4 rows, a pass 3 chunks
    assert np.bincount(drawn)[:13].tolist() == [7] * 13


def test_ordered_rows_are_read_from_their_chunks(data):
    index = build_index(data)
    rows = run_order(index, data, seed=1, global_batch_images=8).batch(2)
    for chunk, row, sample_id in zip(rows.chunk_N.tolist(), rows.row_N, rows.sample_id_N, strict=True):
        assert index.read(chunk)[row]["sample_id"] == sample_id


def test_the_command_says_what_it_found_and_where(data, tmp_path, capsys):
    config = {
        "variant": "S",
        "name": "x",
        "storage": f"{tmp_path}/runs",
        "global_batch_images": 8,
        "data": data.model_dump(mode="json"),
    }
    (tmp_path / "run.yaml").write_text(json.dumps(config))
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    job.run(parser.parse_args([f"{tmp_path}/run.yaml"]))
    out = capsys.readouterr().out
    assert f"23 rows in 4 shards and 8 chunks: {tmp_path}/runs/index/" in out
    assert (
        "image: jpg" in out
        and "synthetic_captions: re_caption" in out
        and "1 bad rows: there is no such image file" in out
    )
    assert storage.list_folders(f"{tmp_path}/runs/index")


def test_the_index_is_made_without_ray_or_torch():
    code = "import sys, tips_ray.data.index; print([name for name in ('ray', 'torch', 'boto3') if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert result.stdout.strip() == "[]"
