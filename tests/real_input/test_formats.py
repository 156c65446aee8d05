"""The same photos in every format and place are the same samples in the same order."""

import hashlib
from itertools import product

import pytest
from photos import photos, upload_layouts, write_layouts

from tips_ray.config import DataConfig
from tips_ray.data.index import build_index, run_order
from tips_ray.data.sources.caption_quality import doubts

LAYOUTS = ("folder", "tars", "parquet", "hugging_face")
PHOTOS, ROWS = 120, 180
"""Photos of a source, and the rows that are looked at: an epoch and a half."""
CHUNK_ROWS, WINDOW_CHUNKS, BATCH, SEED = 20, 4, 32, 11


@pytest.fixture(scope="module")
def places(s3_of_file, tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("photos")
    write_layouts(root, photos()[:PHOTOS])
    bucket = s3_of_file.make_bucket("formats")
    upload_layouts(root, bucket)
    return {"local": str(root), "s3": bucket}


def _data(*sources: str | dict) -> DataConfig:
    listed = [source if isinstance(source, dict) else {"uri": source} for source in sources]
    return DataConfig.model_validate({"sources": listed, "chunk_rows": CHUNK_ROWS, "window_chunks": WINDOW_CHUNKS})


def _digest(image: bytes) -> str:
    return hashlib.sha256(image).hexdigest()


def _in_order(data: DataConfig) -> list[tuple]:
    """(position, sample key, image, web caption, synthetic captions) of the first positions."""
    index = build_index(data)
    assert index.rejects.num_rows == 0
    order = run_order(index, data, SEED, BATCH)
    chunks = [index.read(number) for number in range(len(index.chunks.rows))]
    rows = order.rows(0, ROWS)
    found = []
    for position, key, chunk, row in zip(rows.position_N, rows.sample_key_N, rows.chunk_N, rows.row_N, strict=True):
        sample = chunks[chunk][row]
        assert sample["error"] == ""
        found.append((position, key, _digest(sample["image"]), sample["web_caption"], sample["synthetic_captions"]))
    return found


@pytest.fixture(scope="module")
def expected(places) -> list[tuple]:
    """The rows of the folder."""
    return _in_order(_data(f"{places['local']}/folder"))


def test_an_epoch_holds_every_photo_once_with_its_own_captions(expected):
    epoch = sorted((image, web, synthetic) for _, _, image, web, synthetic in expected[:PHOTOS])
    assert epoch == sorted((_digest(photo.image), photo.captions[0], photo.captions[1:]) for photo in photos()[:PHOTOS])


@pytest.mark.parametrize(
    ("layout", "place"), [pair for pair in product(LAYOUTS, ("local", "s3")) if pair != ("folder", "local")]
)
def test_every_format_and_place_gives_the_same_rows_in_the_same_order(layout, place, places, expected):
    assert _in_order(_data(f"{places[place]}/{layout}")) == expected


def test_two_sources_of_other_formats_and_places_share_an_epoch_by_their_weights(places):
    data = _data(f"{places['local']}/tars", {"uri": f"{places['s3']}/parquet", "weight": 0.5})
    order = run_order(build_index(data), data, SEED, BATCH)
    samples = order.rows(0, ROWS).sample_id_N.tolist()
    assert order.epoch_start(1) == ROWS
    assert sum(sample < PHOTOS for sample in samples) == PHOTOS and len(set(samples)) == ROWS


def test_captions_of_real_photos_give_no_warning():
    captions = [text for photo in photos() for text in photo.captions]
    assert len(captions) == 2000 and doubts(captions) == [] and doubts(captions[::5]) == []
