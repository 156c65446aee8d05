"""Captions of the store meet the rows of their chunks: by place, checked by hash, waited for within bounds."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from writers import write_pairs

from tips_ray.captioning import stream
from tips_ray.config import DataConfig
from tips_ray.data.captions import join
from tips_ray.data.captions.coordinator import News
from tips_ray.data.captions.join import (
    Waiting,
    captions_folder,
    missing_chunks,
    place_of,
    read_captions,
    with_captions,
)
from tips_ray.data.captions.store import CaptionStore, ChunkCaptions, image_sha256
from tips_ray.data.columns import SourceRow
from tips_ray.data.index import Index, build_index


@pytest.fixture
def index(tmp_path) -> Index:
    """13 rows in chunks of four: two in the first tar (7 rows), two in the second (6 rows)."""
    write_pairs(tmp_path / "tars" / "a.tar", rows=7)
    write_pairs(tmp_path / "tars" / "b.tar", rows=6, first=7)
    return build_index(DataConfig.model_validate({"sources": [{"uri": str(tmp_path / "tars")}], "chunk_rows": 4}))


@pytest.fixture
def store(tmp_path) -> CaptionStore:
    return CaptionStore(str(tmp_path / "captions"), "0123456789abcdef")


def _made(index: Index, chunk: int) -> ChunkCaptions:
    rows = index.read(chunk)
    hashes = image_sha256(row["image"] for row in rows)
    return ChunkCaptions(index.chunk(chunk).row, hashes, [[f"of {row['key']}"] for row in rows], [""] * len(rows))


def _write(index: Index, store: CaptionStore, chunk: int) -> None:
    store.write(*place_of(index, chunk), _made(index, chunk))


def _row(image: bytes, **values: Any) -> SourceRow:
    return SourceRow(
        **{
            "sample_id": 0,
            "key": "k",
            "image": image,
            "web_caption": "w",
            "synthetic_captions": [],
            "error": "",
            **values,
        }
    )


def test_chunks_of_the_index_are_numbered_anew_in_each_shard(index):
    places = [place_of(index, chunk) for chunk in range(4)]
    assert [number for _, number in places] == [0, 1, 0, 1]
    assert [shard.path[-5:] for shard, _ in places] == ["a.tar", "a.tar", "b.tar", "b.tar"]
    assert [shard.chunks for shard, _ in places] == [2, 2, 2, 2]


def test_missing_chunks_are_those_without_an_object(index, store):
    for chunk in (1, 2):
        _write(index, store, chunk)
    assert missing_chunks(index, store).tolist() == [0, 3]


def test_rows_get_the_captions_of_their_own_image(index, store):
    _write(index, store, 2)
    found = read_captions(index, [2], store)
    rows = with_captions(index.read(2), found[2], "")
    assert [row["synthetic_captions"] for row in rows] == [[f"of {row['key']}"] for row in rows]
    assert not any(row["error"] for row in rows)


def test_captions_of_other_bytes_make_the_row_bad_and_an_error_of_the_captioner_leaves_it_without():
    made = ChunkCaptions(0, image_sha256([b"a", b"x", b"c"]), [["A"], ["X"], []], ["", "", "no image"])
    given = [_row(b"a"), _row(b"b"), _row(b"c", synthetic_captions=["old"])]
    one, other, third = with_captions(given, made, "s3://bucket/of-shard")
    assert (one["synthetic_captions"], one["error"]) == (["A"], "")
    assert "another image (sha256 differs): delete s3://bucket/of-shard" in other["error"] and other["image"] == b""
    assert (third["synthetic_captions"], third["error"]) == ([], "")


def test_captions_that_should_be_there_and_are_not_are_an_error_at_once(index, store):
    _write(index, store, 0)
    with pytest.raises(ValueError, match="1 of 2 chunks have no captions in .*run tips-ray caption first"):
        read_captions(index, [0, 1], store)


@pytest.mark.parametrize("content", [b"", b"<html>try later</html>"])
def test_an_image_that_the_captioner_could_not_read_is_a_row_without_captions(content):
    """A download may fail during captioning and succeed in training."""
    made = ChunkCaptions(0, image_sha256([content]), [[]], ["cannot be downloaded, or not an image"])
    (row,) = with_captions([_row(b"a")], made, "")
    assert (row["synthetic_captions"], row["error"], row["image"]) == ([], "", b"a")


def test_captions_lie_in_the_folder_that_the_sentence_names(index, store):
    _write(index, store, 2)
    (path,) = Path(captions_folder(index, 2, store)).iterdir()
    assert path.name == "00000000-00000001.parquet"


def test_captions_that_take_longer_than_the_wait_are_waited_for_while_others_are_made(index, store, clock):
    looks = []

    def news(seconds: float) -> News:
        looks.append(clock.now)
        clock.now += 40
        if len(looks) == 9:
            _write(index, store, 1)
        return News(made=len(looks) // 2, failure="")

    assert read_captions(index, [1], store, Waiting(60, news))[1].captions == _made(index, 1).captions
    assert len(looks) == 9


def test_a_captioner_that_makes_nothing_is_waited_for_so_long(index, store, clock):
    def news(seconds: float) -> News:
        clock.now += 25
        return News(made=7, failure="")

    with pytest.raises(
        ValueError, match=r"1 of 1 chunks have no captions in .*none were made for 75 s.*room for a cap"
    ):
        read_captions(index, [3], store, Waiting(60, news))
    assert clock.now == 4 * 25


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """The time that readers see."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(join.time, "monotonic", lambda: clock.now)
    return clock


def test_chunks_that_are_read_together_come_when_the_first_of_them_is_due(monkeypatch):
    """If few chunks are due, the next may lie far beyond the lead, while training waits for the first."""
    asked = []
    monkeypatch.setattr(stream, "_is_due", lambda window, coordinator: asked.append(window))
    monkeypatch.setattr(stream, "opened_index", lambda uri: None)
    inputs: Any = SimpleNamespace(index_uri="", access=SimpleNamespace(coordinator=object()))
    batch = {"window": np.array([3, 190]), "chunk": np.array([7, 8])}
    assert list(stream._read(batch, inputs)) == [] and asked == [3]


def test_captions_that_come_with_the_last_news_are_found(index, store):
    def news(seconds: float) -> News:
        _write(index, store, 3)
        return News(1, "captioning is done")

    assert read_captions(index, [3], store, Waiting(60, news))[3].captions == _made(index, 3).captions


def test_captions_that_will_never_come_are_not_waited_for(index, store):
    with pytest.raises(ValueError, match="1 of 1 chunks have no captions .*none will come: the captioner broke"):
        read_captions(index, [3], store, Waiting(3600, lambda seconds: News(0, "the captioner broke")))
