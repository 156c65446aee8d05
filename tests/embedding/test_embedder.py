"""A chunk of rows becomes a table with the encoder's numbers and nulls for bad rows; Parquet keeps it unchanged."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_embedding import SIDE, embedding_config, plain_features, write_model, write_source
from toy_run import scene_row

from tips_ray.data.index import Index, build_index
from tips_ray.embedding.decoded import DecodedChunk, decoded_chunk
from tips_ray.embedding.embedder import Embedder, layout_of
from tips_ray.embedding.layout import arrays, lists_of_arrays
from tips_ray.evaluation.load_encoder import load_encoder

ROWS = 12


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    return write_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    return write_source(tmp_path_factory.mktemp("scenes") / "data", ROWS)


def _table(model: str, source: str, chunk: int, **values: Any) -> pa.Table:
    """The table of a chunk, read back from its Parquet file."""
    config = embedding_config(source, **values)
    index, encoder = build_index(config.data), load_encoder(model)
    embedder = Embedder(encoder, layout_of(encoder, config), index, config.batch_images)
    pq.write_table(embedder(_sent(index, chunk, config)), file := io.BytesIO())
    return pq.read_table(pa.BufferReader(file.getvalue()))


def _sent(index: Index, chunk: int, config) -> DecodedChunk:
    """A decoded chunk after the round trip through the table that carries it between processes."""
    (row,) = decoded_chunk(index, chunk, SIDE, config).table().to_pylist()
    return DecodedChunk.of_row(row, SIDE)


def test_a_row_has_its_place_and_what_the_encoder_gives_of_its_image(model, source):
    row = _table(model, source, 1).to_pylist()[2]
    assert row["sample_id"] == row["row"] == 6 and row["error"] == ""
    assert Path(row["shard"]).name == "0000.parquet" and row["key"] == f"{row['shard']}#6"
    expected = plain_features(model, 6)
    for name in ("cls_web", "cls_synthetic"):
        np.testing.assert_allclose(row[name], expected.embeddings[name][0], atol=1e-5)


def test_a_bad_image_has_a_reason_and_nulls_and_moves_no_other(model, source):
    table = _table(model, source, 0, patches="mean")
    assert [row["error"].partition(":")[0] for row in table.to_pylist()] == ["", "", "", "not an image"]
    for name in ("cls_web", "cls_synthetic", "patches_mean"):
        assert [value is None for value in table[name].to_pylist()] == [False, False, False, True]
    last = _table(model, source, 2).to_pylist()
    np.testing.assert_allclose(last[2]["cls_web"], plain_features(model, 10).embeddings["cls_web"][0], atol=1e-5)
    assert last[1]["error"] == "the image has no bytes"


def test_patches_are_kept_whole_or_as_their_mean(model, source):
    expected = plain_features(model, 4).patches_BLD[0]
    whole, mean = (_table(model, source, 1, patches=kind) for kind in ("all", "mean"))
    np.testing.assert_allclose(whole["patches"][0].as_py(), expected, atol=1e-5)
    np.testing.assert_allclose(mean["patches_mean"][0].as_py(), expected.mean(0), atol=1e-5)
    assert whole.schema.field("patches").type == pa.list_(pa.list_(pa.float32()))


def test_captions_are_embedded_even_of_a_bad_image_and_null_where_there_is_none(model, source):
    first, second = (_table(model, source, chunk, captions=True).to_pylist() for chunk in (0, 1))
    encoder = load_encoder(model)
    for row, number in ((first[3], 3), (second[2], 6)):
        texts = scene_row(number)
        np.testing.assert_allclose(row["web_caption_embedding"], encoder.texts([texts["caption"]])[0], atol=1e-5)
        (made,) = row["synthetic_caption_embeddings"]
        np.testing.assert_allclose(made, encoder.texts([texts["synthetic_caption"]])[0], atol=1e-5)
    assert second[1]["web_caption_embedding"] is None and len(second[1]["synthetic_caption_embeddings"]) == 1


def test_half_numbers_are_the_rounded_ones(model, source):
    half, whole = (_table(model, source, 1, dtype=dtype)["cls_web"] for dtype in ("float16", "float32"))
    assert half.type == pa.list_(pa.float16())
    assert np.array_equal(half.to_pylist(), np.float16(whole.to_pylist()))


def test_a_model_without_texts_embeds_no_captions(model, tmp_path, source):
    encoder = load_encoder(model)
    encoder.text_embeddings = ()
    with pytest.raises(ValueError, match="captions=true needs an encoder that reads texts"):
        layout_of(encoder, embedding_config(source, captions=True))


def test_nulls_lie_between_arrays():
    values = np.array([[[1], [2]], [[3], [4]]], np.float32)
    assert arrays(values, [False, True, False, True]).to_pylist() == [None, [[1], [2]], None, [[3], [4]]]
    assert arrays(values[:0], [False, False]).to_pylist() == [None, None]


def test_lists_of_arrays_may_be_empty():
    values = np.array([[1, 2], [3, 4], [5, 6]], np.float16)
    assert lists_of_arrays(values, [0, 2, 1]).to_pylist() == [[], [[1, 2], [3, 4]], [[5, 6]]]
    assert lists_of_arrays(values[:0], [0, 0]).to_pylist() == [[], []]
