"""Exact cosine search and pairs of similar rows."""

from collections.abc import Iterator

import numpy as np
import pytest

from tips_ray.curation import search
from tips_ray.curation.components import components
from tips_ray.curation.search import best_query, nearest, similar_pairs


@pytest.fixture(autouse=True)
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "TILE_QUERIES", 32)
    monkeypatch.setattr(search, "TILE_ROWS", 64)
    monkeypatch.setattr(search, "EXACT_PAIRS", 10)


def _unit(rows: int, width: int = 24, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((rows, width))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(dtype)


def _near(vectors: np.ndarray, cosine: float, seed: int = 1) -> np.ndarray:
    """Unit vectors at this cosine from the given ones."""
    noise = np.random.default_rng(seed).standard_normal(vectors.shape)
    noise -= (noise * vectors).sum(1, keepdims=True) * vectors
    noise /= np.linalg.norm(noise, axis=1, keepdims=True)
    return (cosine * vectors + (1 - cosine**2) ** 0.5 * noise).astype(np.float32)


def _chunks(pool: np.ndarray, size: int) -> Iterator[tuple[int, np.ndarray]]:
    return ((first, pool[first : first + size]) for first in range(0, len(pool), size))


def _all_pairs(blocks: list[np.ndarray], threshold: float, clusters: int | None = None) -> set[tuple[int, int]]:
    return {tuple(pair) for part in similar_pairs(blocks, threshold, clusters) for pair in part.tolist()}


def test_the_nearest_by_hand():
    pool = np.array([[1, 0], [0, 1], [0.6, 0.8], [-1, 0]], np.float32)
    found = nearest(np.array([[1, 0], [0.8, 0.6]], np.float32), [(10, pool)], 3)
    assert found.ids_QK.tolist() == [[10, 12, 11], [12, 10, 11]]
    np.testing.assert_allclose(found.scores_QK, [[1, 0.6, 0], [0.96, 0.8, 0.6]], rtol=1e-6)
    assert found.scores_QK.dtype == np.float32 and found.ids_QK.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_the_nearest_are_those_of_a_full_table(dtype: type):
    queries, pool = _unit(70, dtype=dtype), _unit(1000, seed=1, dtype=dtype)
    table = queries.astype(np.float64) @ pool.astype(np.float64).T
    expected = np.argsort(-table.astype(np.float32), axis=1, kind="stable")[:, :7]
    found = nearest(queries, _chunks(pool, 300), 7)
    np.testing.assert_array_equal(found.ids_QK, expected)
    np.testing.assert_array_equal(found.scores_QK, np.take_along_axis(table, expected, 1).astype(np.float32))


def test_the_result_does_not_depend_on_chunks_tiles_and_their_order(monkeypatch: pytest.MonkeyPatch):
    queries, pool = _unit(50), _unit(900, seed=1)
    pool[500:560] = pool[100]  # ties
    pool[700:] = pool[:200]
    queries[0] = pool[100]
    expected = nearest(queries, _chunks(pool, 900), 9)
    assert expected.ids_QK[0].tolist() == [100, *range(500, 508)]
    for size, side in ((900, 7), (64, 64), (13, 500), (1, 64)):
        monkeypatch.setattr(search, "TILE_ROWS", side)
        for chunks in (list(_chunks(pool, size)), list(_chunks(pool, size))[::-1]):
            found = nearest(queries, chunks, 9)
            np.testing.assert_array_equal(found.ids_QK, expected.ids_QK)
            np.testing.assert_array_equal(found.scores_QK, expected.scores_QK)


def test_vectors_without_direction_are_near_nothing():
    pool = _unit(100, seed=1)
    pool[:70] = np.array([0, np.nan, np.inf, -np.inf, 1e30])[np.arange(70) % 5, None]
    queries = _unit(4)
    queries[2:] = [[0], [np.nan]]
    found = nearest(queries, _chunks(pool, 80), 40)
    assert (np.sort(found.ids_QK[:2, :30], axis=1) == np.arange(70, 100)).all()
    assert (found.ids_QK[:2, 30:] == -1).all() and (found.ids_QK[2:] == -1).all()
    assert (found.scores_QK[found.ids_QK == -1] == -np.inf).all()
    assert best_query(queries, pool)[1][2:].tolist() == [-1, -1]
    assert not [pair for pair in _all_pairs([pool], 0.0, None) if min(pair) < 70]


def test_bad_arguments_are_sentences():
    with pytest.raises(ValueError, match=r"k \(0\) must be at least 1"):
        nearest(_unit(1), [], 0)
    with pytest.raises(ValueError, match="2,000 queries of width 24 need 811 kB, memory_bytes allows 1 kB"):
        nearest(_unit(2000), [], 10, memory_bytes=1000)
    with pytest.raises(ValueError, match="queries of width 24 meet rows of width 3"):
        nearest(_unit(1), [(0, _unit(5, 3))], 1)


def test_without_pool_or_queries_there_is_nothing():
    assert nearest(_unit(2), [], 3).ids_QK.tolist() == [[-1] * 3] * 2
    assert nearest(_unit(0), [(0, _unit(4))], 3).ids_QK.shape == (0, 3)
    assert best_query(_unit(0), _unit(3))[0].shape == (0,)
    assert not _all_pairs([], 0.5, 4) and not _all_pairs([_unit(0)], 0.5, 4)


def test_each_row_has_its_best_query():
    pool, queries = _unit(300), _unit(150, seed=1)
    queries[140] = queries[3]
    pool[7] = queries[3]
    table = pool.astype(np.float64) @ queries.T.astype(np.float64)
    score_N, query_N = best_query(pool, queries)
    np.testing.assert_array_equal(query_N, table.argmax(axis=1))
    np.testing.assert_array_equal(score_N, table.max(axis=1).astype(np.float32))
    assert query_N[7] == 3


@pytest.mark.parametrize("cuts", [[], [1], [40, 41, 130], [0, 0, 200]])
def test_similar_pairs_are_those_of_a_full_table(cuts: list[int]):
    rows = _unit(200, 8)
    table = rows.astype(np.float64) @ rows.T.astype(np.float64)
    expected = {tuple(pair) for pair in np.argwhere(np.triu(table.astype(np.float32) >= np.float32(0.8), 1)).tolist()}
    assert 20 < len(expected) < 200
    assert _all_pairs(np.split(rows, cuts), 0.8) == expected


def test_a_cosine_equal_to_the_threshold_is_similar():
    rows = np.array([[1, 0], [0.6, 0.8]], np.float32)
    assert _all_pairs([rows], float(np.float32(0.6))) == {(0, 1)}
    assert _all_pairs([rows], float(np.nextafter(np.float32(0.6), np.float32(1)))) == set()


def test_copies_of_one_picture_do_not_make_a_square_of_pairs():
    rows = np.concatenate([_unit(100), np.repeat(_unit(1, seed=3), 600, axis=0), _unit(100, seed=4)])
    pairs = np.concatenate(list(similar_pairs([rows[:333], rows[333:]], 0.95)))
    assert len(pairs) < 20_000  # of 179,700
    assert components(800, pairs).tolist() == [*range(100), *[100] * 600, *range(700, 800)]


def test_clusters_miss_few_of_the_pairs():
    rows = _unit(600, 32)
    rows = np.concatenate([rows, _near(rows, 0.92)])
    exact, found = _all_pairs([rows[:500], rows[500:]], 0.9), _all_pairs([rows[:500], rows[500:]], 0.9, 12)
    assert exact >= {(row, row + 600) for row in range(600)}
    assert found <= exact and len(found) >= 0.93 * len(exact)
    assert found == _all_pairs([rows[:500], rows[500:]], 0.9, 12)


def test_each_pair_of_clusters_comes_once_or_twice():
    rows = np.concatenate([_unit(80, 16), _near(_unit(80, 16), 0.95)])
    pairs = np.concatenate(list(similar_pairs([rows], 0.9, 6)))
    assert (pairs[:, 0] < pairs[:, 1]).all()
    assert np.unique(pairs, axis=0, return_counts=True)[1].max() <= 2
