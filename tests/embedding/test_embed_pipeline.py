"""Embedding through real Ray Data: every row once, with the encoder's numbers, by any number of actors."""

import contextlib
import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow.dataset as ds
import pytest
from toy_embedding import embedding_config, plain_features, rows_of, write_place
from toy_run import scene_row
from writers import write_parquet

from jobs.cli import main
from tips_ray import storage
from tips_ray.data.chunk_files import chunks_per_file
from tips_ray.launch.embedding import embed_all, embed_inputs

ROWS = 40

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_place(tmp_path_factory.mktemp("embed"), ROWS)


def _embed(place: Path, out: str, *words: str) -> int:
    return main(["embed", f"{place}/model", f"{place}/data", f"{place}/{out}", "chunk_rows=4", "captions=true", *words])


@pytest.fixture(scope="module")
def by_one_actor(place, cluster) -> tuple[Path, str]:
    """The folder that one actor made, and what the command showed."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert _embed(place, "one") == 0
    return place / "one", shown.getvalue()


def test_every_row_is_embedded_once_with_the_numbers_of_a_plain_loop(place, by_one_actor):
    one, shown = by_one_actor
    assert f"{ROWS} rows; 0 have their embeddings" in shown and f"{ROWS} rows, 10 of 10 files" in shown
    assert "2 rows have no image, see their column error: 1 not an image, 1 the image has no bytes" in shown
    found = rows_of(one)
    assert [row["sample_id"] for row in found] == list(range(ROWS))
    for number in (0, 6, 39):
        for name in ("cls_web", "cls_synthetic"):
            expected = plain_features(str(place / "model"), number).embeddings[name][0]
            np.testing.assert_allclose(found[number][name], expected, atol=1e-5)


@pytest.mark.slow
def test_only_what_is_missing_is_made_and_two_actors_make_it_as_one_does(place, by_one_actor):
    shutil.copytree(by_one_actor[0], place / "part")
    paths = sorted((place / "part" / "embeddings").iterdir())
    whole, lost = {path: path.read_bytes() for path in paths}, paths[::3]
    for path in lost:
        path.unlink()
    kept = {path: path.stat().st_mtime_ns for path in paths if path not in lost}
    assert _embed(place, "part", "actors=2") == 0
    assert {path: path.read_bytes() for path in paths} == whole
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


@pytest.mark.slow
def test_chunks_that_share_a_file_meet_in_it_whoever_encoded_them(tmp_path, place, cluster):
    rows = [scene_row(number) for number in range(8)]
    columns = {name: [rows[number % 8][name] for number in range(130)] for name in rows[0]}
    write_parquet(tmp_path / "data" / "all.parquet", columns, row_group_size=40)
    config = embedding_config(f"{tmp_path}/data", chunk_rows=1, actors=2)
    inputs, index = embed_inputs(str(place / "model"), config, str(tmp_path / "out"))
    assert chunks_per_file(index, inputs.layout.row_bytes) == 2
    made = embed_all(inputs, inputs.folder.missing(index, inputs.layout.row_bytes), print)
    assert (made.files, made.rows) == (65, 130) and not inputs.folder.missing(index, inputs.layout.row_bytes)
    found = rows_of(tmp_path / "out")
    assert [row["sample_id"] for row in found] == list(range(130))
    assert all(row["cls_web"] == found[row["sample_id"] % 8]["cls_web"] for row in found)
    assert found[0]["cls_web"] != found[1]["cls_web"]


@pytest.mark.slow
def test_from_an_object_store_to_an_object_store(place, s3, by_one_actor):
    bucket = s3.make_bucket("embed")
    for path in (place / "data").iterdir():
        storage.upload(path, f"{bucket}/data/{path.name}")
    source, out = f"{bucket}/data/*.parquet", f"{bucket}/out"
    assert main(["embed", f"{place}/model", source, out, "chunk_rows=4"]) == 0
    filesystem, rows = storage.filesystem(f"{out}/embeddings")
    columns = ["sample_id", "cls_web", "cls_synthetic", "error"]
    expected = ds.dataset(by_one_actor[0] / "embeddings").to_table(columns)
    assert ds.dataset(rows, filesystem=filesystem).to_table(columns) == expected
