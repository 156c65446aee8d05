"""Rows near curated query sets."""

import numpy as np
import pytest

from tips_ray.curation.query import near_queries

POOL = np.array([[1, 0], [0.8, 0.6], [0.6, 0.8], [0, 1], [-1, 0], [0, 0]], np.float32)
SETS = {"east": np.array([[1, 0]], np.float32), "north": np.array([[-0.6, 0.8], [0, 1]], np.float32)}
CHUNKS = [(0, POOL[:2]), (2, POOL[2:])]


def test_rows_above_the_threshold_are_near_their_best_query():
    found = near_queries(CHUNKS, SETS, 0.7)
    assert found.is_near_N.tolist() == [True, True, True, True, False, False]
    assert found.set_N.tolist() == [0, 0, 1, 1, -1, -1]
    assert found.query_N.tolist() == [0, 0, 1, 1, -1, -1]
    np.testing.assert_allclose(found.score_N, [1, 0.8, 0.8, 1, -np.inf, -np.inf], rtol=1e-6)


def test_a_query_keeps_its_nearest_rows_only():
    found = near_queries(CHUNKS, SETS, -1.0, k=1)
    assert found.is_near_N.tolist() == [True, False, False, True, False, False]
    assert found.set_N.tolist() == [0, -1, -1, 1, -1, -1]
    assert found.query_N.tolist() == [0, -1, -1, 1, -1, -1]  # both of north find row 3, the second is nearer
    assert near_queries(CHUNKS, SETS, 0.9, k=2).is_near_N.tolist() == [True, False, False, True, False, False]


@pytest.mark.parametrize("k", [None, 3])
def test_the_order_of_chunks_does_not_matter(k: int | None):
    numbers = np.random.default_rng(0)
    pool, queries = numbers.standard_normal((200, 8)), numbers.standard_normal((30, 8))
    pool /= np.linalg.norm(pool, axis=1, keepdims=True)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    queries[20] = queries[4]
    sets = {"a": queries[:7], "b": queries[7:]}
    expected = near_queries([(0, pool)], sets, 0.7, k)
    assert 20 < expected.is_near_N.sum() < 150 and not ((expected.set_N == 1) & (expected.query_N == 13)).any()
    found = near_queries([(start, pool[start : start + 30]) for start in range(180, -1, -30)], sets, 0.7, k)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def test_missing_queries_are_a_sentence():
    with pytest.raises(ValueError, match="there is no query set"):
        near_queries(CHUNKS, {}, 0.5)
    with pytest.raises(ValueError, match="query sets without images: empty"):
        near_queries(CHUNKS, {"empty": POOL[:0], **SETS}, 0.5)
