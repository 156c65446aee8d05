"""Stages of a curation by hand: what each drops, what it leaves to the next, and which duplicate stays."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tips_ray.config import SourceConfig
from tips_ray.config.curation import CurationConfig, SealedBounds
from tips_ray.curation import stages
from tips_ray.curation.signals import NO_CAPTION, domain, schema
from tips_ray.curation.stages import Funnel, Pictures
from tips_ray.curation.vectors import EmbeddedRows, unit_vectors
from tips_ray.curation.weakness import margins, weakest


def _config(**keys: Any) -> CurationConfig:
    return CurationConfig(source=SourceConfig(uri="raw"), out="out", **keys)


def _signals(config: CurationConfig, rows: list[dict[str, Any]]) -> pa.Table:
    base = {"error": "", "width": 200, "height": 100, "english_votes": 3, "domain": "", "caption_id": 1}
    return pa.Table.from_pylist([{**base, **row, "sample_id": n} for n, row in enumerate(rows)], schema(config))


def test_each_row_is_dropped_by_the_first_stage_that_objects():
    config = _config(
        images={"min_side_px": 64, "max_aspect": 3},
        fields={"punsafe": {"max": 0.1}, "score": {"min": 5, "missing": "keep"}},
        blocked_domains=("bad.com",),
        language={"needed": 2},
    )
    good = {"field.punsafe": 0.1, "field.score": 5.0}
    rows = [
        good,
        good | {"error": "truncated", "width": None, "height": None},
        good | {"width": 63},
        good | {"width": 301},
        good | {"width": 300},
        good | {"field.punsafe": 0.11},
        good | {"field.punsafe": None},
        good | {"field.score": None},
        good | {"field.score": 4.9},
        good | {"domain": "bad.com"},
        good | {"domain": "img.bad.com"},
        good | {"domain": "notbad.com"},
        good | {"english_votes": 1},
        good | {"english_votes": 0, "caption_id": NO_CAPTION},
        good | {"width": 63, "english_votes": 0},
    ]
    funnel = stages.cheap_stages(_signals(config, rows), config)
    names = [funnel.stages[reason] for reason in funnel.reason_N]
    unsafe, blocked = "field punsafe", "blocked domain"
    assert names == [
        "kept", "unreadable", "too small", "too long", "kept", unsafe, unsafe, "kept", "field score", blocked, blocked,
        "kept", "not English", "no caption", "too small",
    ]  # fmt: skip
    assert funnel.counts()["kept"] == 4 == len(funnel.kept_K)


def _embedded(
    folder: Path, sample_K: Any, image: list[list[float] | None], text: list[list[float] | None] | None = None
) -> EmbeddedRows:
    """Files of two rows each."""
    folder.mkdir()
    text = text or image
    kind = pa.list_(pa.float16())
    halves = [[None if v is None else np.array(v, np.float16) for v in values] for values in (image, text)]
    for start in range(0, len(image), 2):
        part = pa.table([pa.array(values[start : start + 2], kind) for values in halves], names=["cls", "caption"])
        pq.write_table(part, folder / f"{start:04d}.parquet")
    return EmbeddedRows.at(str(folder), "cls", sample_K)


def test_vectors_have_length_one_and_missing_ones_are_zero():
    column = pa.chunked_array([pa.array([[3.0, 4.0], None, [0.0, 0.0]], pa.list_(pa.float32()))])
    assert unit_vectors(column) == pytest.approx(np.array([[0.6, 0.8], [0, 0], [0, 0]]))
    assert unit_vectors(pa.chunked_array([pa.array([None], pa.list_(pa.float32()))])).shape[0] == 1


def test_similarity_is_the_cosine_of_image_and_caption_of_the_rows_that_are_left(tmp_path):
    funnel = Funnel.over(5)
    funnel.drop("earlier", np.array([False, True, False, False, False]))
    kept_K = funnel.kept_K
    rows = _embedded(tmp_path / "e", kept_K, [[1, 0], [2, 0], [1, 0], None], [[5, 0], [1, 1], [0, 1], [1, 0]])
    stages.similarity_stage(funnel, rows, "caption", 0.5)
    assert funnel.reason_N.tolist() == [0, 1, 0, 2, 2]
    expected = [1, np.nan, 0.5**0.5, 0, 0]
    assert funnel.values["similarity"] == pytest.approx(expected, abs=1e-3, nan_ok=True)


def test_rows_near_a_curated_image_are_kept_and_then_the_nearest_of_each(tmp_path):
    funnel, embedded_K = Funnel.over(6), np.array([0, 1, 3, 4, 5])
    funnel.drop("earlier", np.array([False, False, True, False, False, False]))
    funnel.drop("unlike its caption", np.array([True, False, False, False, False, False]))
    angles = np.radians([0, 10, 40, 80, 95])
    rows = _embedded(tmp_path / "e", embedded_K, [[np.cos(a), np.sin(a)] for a in angles])
    queries_QD = np.array([[1, 0], [0, 1]], np.float32)
    stages.near_stage(funnel, rows, queries_QD, 0.9)  # 40 and 50 degrees away is .77
    assert funnel.reason_N.tolist() == [2, 0, 1, 3, 0, 0]
    assert np.isnan(funnel.values["near a curated image"][[0, 2]]).all()
    stages.nearest_stage(
        funnel, "not among the nearest", rows, queries_QD, 1, 2**30
    )  # the row that was dropped at 0 degrees takes nobody's place
    assert funnel.reason_N.tolist() == [2, 0, 1, 3, 4, 0]


def _pictures(hashes: list[int], mirrored: list[int] | None = None, vectors: Any = None) -> Pictures:
    return Pictures(np.array(hashes, np.uint64), np.array(mirrored or [~h % 2**64 for h in hashes], np.uint64), vectors)


A, B = 0x0F0F_3C3C_55AA_6996, 0xF00F_C33C_AA55_9669
"""Hashes far from each other."""


def test_sealed_images_and_what_is_like_them_are_dropped():
    bounds = SealedBounds(hash_distance=2, similarity=0.9)
    funnel, kept_K = Funnel.over(4), np.array([0, 1, 2, 3])
    east, north = [1.0, 0.0], [0.0, 1.0]
    found = _pictures([A, A ^ 0b11, A ^ 0b111, B], vectors=np.array([north, north, north, east], np.float32))
    stages.sealed_stage(funnel, "voc", kept_K, found, _pictures([A], vectors=np.array([east], np.float32)), bounds)
    assert funnel.reason_N.tolist() == [1, 1, 0, 1] and funnel.stages == ["kept", "sealed voc"]


@pytest.mark.parametrize(("keep", "stays"), [("largest", 4), ("first", 1)])
def test_one_of_each_group_of_duplicates_is_kept_by_the_stated_rule(keep, stays):
    """Rows 1, 3, 4 are a chain: 1 is near 3, 3 near 4, 1 not near 4. Rows 0 and 5 are alone."""
    config = _config(duplicates={"hash_distance": 2, "keep": keep})
    funnel, kept_K = Funnel.over(6), np.array([0, 1, 3, 4, 5])
    funnel.drop("earlier", np.array([False, False, True, False, False, False]))
    found = _pictures([B, A, A ^ 0b11, A ^ 0b1111, 0x1234_5678_9ABC_DEF0])
    stages.duplicates_stage(funnel, kept_K, found, np.array([5, 10, 20, 30, 5]), config)
    assert np.flatnonzero(funnel.is_kept_N).tolist() == [0, stays, 5]
    assert funnel.partner_N is not None
    assert funnel.partner_N.tolist() == [stays if n in (1, 3, 4) and n != stays else -1 for n in range(6)]


def test_of_equally_large_duplicates_the_first_is_kept():
    funnel = Funnel.over(3)
    stages.duplicates_stage(funnel, np.arange(3), _pictures([A, A, A]), np.array([7, 7, 7]), _config())
    assert funnel.reason_N.tolist() == [0, 1, 1]


def test_a_caption_is_kept_so_many_times_and_only_rows_that_are_left_count():
    funnel = Funnel.over(7)
    funnel.drop("earlier", np.array([True, False, False, False, False, False, False]))
    stages.repeats_stage(funnel, np.array([9, 9, 4, 9, 9, 4, 2**64 - 1], np.uint64), 2)
    assert funnel.reason_N.tolist() == [1, 0, 0, 0, 2, 0, 0]


def test_a_domain_is_the_host_of_a_url():
    assert [domain(url) for url in ("https://Img.Example.com:80/a.jpg?x", "a.jpg", "", "http://[bad")] == [
        "img.example.com", "", "", ""
    ]  # fmt: skip


def test_a_config_that_compares_without_an_encoder_is_refused():
    with pytest.raises(ValueError, match="similarity compares embeddings: set encoder"):
        _config(similarity={"min": 0.2})
    with pytest.raises(ValueError, match="min or max must be given"):
        _config(fields={"x": {}})
    with pytest.raises(ValueError, match="'https://bad.com/' is no domain: write example.com, without https"):
        _config(blocked_domains=["https://bad.com/"])


def test_rows_of_an_earlier_selection_stay_unless_they_are_unreadable_or_sealed():
    config = _config(language={"needed": 2})
    rows = [{"english_votes": 0}, {"english_votes": 0}, {"error": "gone"}, {}, {}]
    funnel = stages.cheap_stages(_signals(config, rows), config, np.array([True, False, True, False, True]))
    assert [funnel.stages[reason] for reason in funnel.reason_N] == [
        "kept",
        "not English",
        "unreadable",
        "kept",
        "kept",
    ]
    kept_K = funnel.kept_K  # 0 and 3 are duplicates; 0 is smaller and of the base
    stages.duplicates_stage(funnel, kept_K, _pictures([A, A, B]), np.array([1, 100, 1]), config)
    assert funnel.kept_K.tolist() == [0, 4]
    stages.sealed_stage(funnel, "voc", funnel.kept_K, _pictures([A, B]), _pictures([B]), SealedBounds())
    assert funnel.kept_K.tolist() == [0]


def test_rows_of_an_earlier_selection_take_no_places_among_the_nearest(tmp_path):
    funnel = Funnel.over(3, np.array([True, False, False]))
    rows = _embedded(tmp_path / "e", np.arange(3), [[1, 0], [0.9, 0.1], [0.5, 0.5]])
    stages.nearest_stage(funnel, "far", rows, np.array([[1, 0]], np.float32), 1, 2**30)
    assert funnel.kept_K.tolist() == [0, 1]


def test_the_weakest_pairs_are_those_whose_nearest_is_another():
    """Pair 0 ties with the caption of 3; 1 and 2 are nearer to each other's captions; 3 has no image."""
    image_ND = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]], np.float32)
    text_ND = np.array([[1, 0, 0], [0, 0.6, 0.8], [0, 0.8, 0.6], [1, 0, 0]], np.float32)
    margin_N = margins(image_ND, text_ND)
    assert margin_N[:3] == pytest.approx([0, -0.2, -0.2], abs=1e-6) and np.isnan(margin_N[3])
    assert weakest(margin_N, 0.5).tolist() == [1, 2] and weakest(margin_N, 0.1).tolist() == [1]
