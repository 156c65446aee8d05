"""Folders of embeddings: chunks of a file, missing files, each written once, all made from the same inputs."""

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pytest

from tips_ray import storage
from tips_ray.data import chunk_files as module
from tips_ray.data.chunk_files import ChunkFiles, chunks_per_file, file_name, files
from tips_ray.data.index import ChunkTable, Index
from tips_ray.embedding.layout import Layout

SMALL = Layout({"cls": (4,)}, None, "float32")


def _index(chunks: int, chunk_rows: int = 64) -> Index:
    """An index whose last chunk has one row."""
    rows = np.full(chunks, chunk_rows, np.int32)
    rows[-1] = 1
    number, first = np.zeros(chunks, np.int64), np.cumsum(rows) - rows
    table = ChunkTable(number.astype(np.int32), first, rows, first, number, number)
    return Index("f", chunk_rows, (), pa.table({}), table, pa.table({}))


def test_every_chunk_is_in_one_file_named_by_its_samples(monkeypatch):
    monkeypatch.setattr(module, "FEWEST_FILES", 2)
    index = _index(5)
    assert files(index, SMALL.row_bytes) == [range(0, 2), range(2, 4), range(4, 5)]
    names = [file_name(index, chunks) for chunks in files(index, SMALL.row_bytes)]
    assert names == [
        "0000000000-0000000128.parquet",
        "0000000128-0000000256.parquet",
        "0000000256-0000000257.parquet",
    ]


def test_few_rows_go_into_small_files_many_into_large_ones_and_patches_into_their_own():
    base = Layout({"cls_web": (768,), "cls_synthetic": (768,)}, None, "float32")
    patches = Layout({**base.images, "patches": (256, 768)}, None, "float32")
    assert chunks_per_file(_index(10), base.row_bytes) == chunks_per_file(_index(127), base.row_bytes) == 1
    assert chunks_per_file(_index(640), base.row_bytes) == 10
    assert chunks_per_file(_index(100_000), base.row_bytes) == 64
    assert chunks_per_file(_index(100_000), patches.row_bytes) == 1
    assert base.row_bytes == 2 * 768 * 4


def _rows(number: int) -> pa.Table:
    kind = SMALL.schema.field("cls").type
    vector = pa.array([[number] * 4], kind)
    columns = {"sample_id": [number], "key": ["k"], "shard": ["s"], "row": [0], "cls": vector, "error": [""]}
    return pa.table(columns, schema=SMALL.schema)


def test_a_file_is_written_once_and_then_not_missing(folder):
    index, out = _index(3), ChunkFiles(folder)
    assert out.missing(index, SMALL.row_bytes) == files(index, SMALL.row_bytes)
    name = file_name(index, range(1, 2))
    assert (out.write(name, _rows(1)), out.write(name, _rows(2))) == (True, False)
    assert out.missing(index, SMALL.row_bytes) == [range(0, 1), range(2, 3)]
    filesystem, path = storage.filesystem(out.rows_uri)
    assert ds.dataset(path, filesystem=filesystem).to_table()["cls"].to_pylist() == [[1] * 4]


def test_a_folder_is_of_one_encoder_and_one_source(folder):
    out, decides = ChunkFiles(folder), {"weights": "a", "data": "b", "image_size_px": 224}
    out.claim(decides, {"model": "m"})
    out.claim(decides, {"model": "another name for it"})
    for other, message in (
        ({"weights": "c"}, "holds embeddings of another encoder; choose another OUT"),
        ({"data": "c"}, "holds embeddings of other data, or the data have changed since; choose another OUT"),
        ({"image_size_px": 448}, "holds embeddings with image_size_px 224, not 448; choose another OUT"),
    ):
        with pytest.raises(ValueError, match=message):
            out.claim({**decides, **other}, {})


def test_what_a_kill_left_half_written_is_no_embedding(tmp_path):
    out = ChunkFiles(str(tmp_path))
    index = _index(2)
    out.write(file_name(index, range(0, 1)), _rows(1))
    (tmp_path / "embeddings" / ".0000000064-0000000065.parquet.0.tmp").write_bytes(b"PAR1")
    assert out.missing(index, SMALL.row_bytes) == [range(1, 2)]
    assert ds.dataset(f"{tmp_path}/embeddings").count_rows() == 1
