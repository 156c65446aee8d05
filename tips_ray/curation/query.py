"""Retrieval curation: the rows of a pool that lie near curated query sets. Q queries of all sets, N rows, D width.

TIPS keeps web images near the training sets of its evaluation data; thresholds and neighbours are not published.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tips_ray.curation.search import Chunks, best_query, nearest


class NearQueries(NamedTuple):
    """For each row of the pool, the query that keeps it. Rows have the ids of the chunks, from 0."""

    is_near_N: NDArray[np.bool_]
    set_N: NDArray[np.int64]
    """Number of the query set, in the order given; -1 where the row is not near."""
    query_N: NDArray[np.int64]
    """Row of the query in its set; -1 where the row is not near."""
    score_N: NDArray[np.float32]
    """Cosine of the two; -inf where the row is not near."""


def near_queries(
    pool: Chunks, query_sets: Mapping[str, NDArray], threshold: float, k: int | None = None, memory_bytes: int = 2**30
) -> NearQueries:
    """The rows of the pool that lie near a query, and the nearest query that keeps each.

    Args:
        pool: chunks of unit vectors, each used once.
        query_sets: unit vectors [Q, D] by name, such as the training sets of evaluation data.
        threshold: least cosine of a row and the query that keeps it.
        k: a query keeps no more than its k nearest rows; None: all that reach the threshold.
        memory_bytes: as in `nearest`, where k is given.

    Raises:
        ValueError: there is no query set, one is empty, or as `nearest` raises.
    """
    if not query_sets or not all(map(len, query_sets.values())):
        empty = [name for name, queries_QD in query_sets.items() if not len(queries_QD)]
        raise ValueError(f"query sets without images: {', '.join(empty)}" if empty else "there is no query set")
    queries_QD = np.concatenate([np.asarray(queries_QD) for queries_QD in query_sets.values()])
    counted = _Counted(pool)
    if k is None:
        score_N, query_N = _of_all_rows(counted, queries_QD)
    else:
        found = nearest(queries_QD, counted, k, memory_bytes)
        score_N, query_N = _by_row(found.ids_QK, found.scores_QK, counted.rows)
    is_near_N = score_N >= np.float32(threshold)
    firsts = np.cumsum([0, *map(len, query_sets.values())])
    set_N = np.searchsorted(firsts, query_N, side="right") - 1
    row_N = np.where(is_near_N, query_N - firsts[set_N], -1)
    return NearQueries(is_near_N, np.where(is_near_N, set_N, -1), row_N, np.where(is_near_N, score_N, -np.inf))


class _Counted:
    """The chunks of a pool; `rows` is the end of those that were read."""

    def __init__(self, pool: Chunks) -> None:
        self.pool, self.rows = pool, 0

    def __iter__(self) -> Iterator[tuple[int, NDArray]]:
        for first_id, rows_ND in self.pool:
            self.rows = max(self.rows, first_id + len(rows_ND))
            yield first_id, rows_ND


def _of_all_rows(pool: _Counted, queries_QD: NDArray) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Score and query of the nearest query of each row."""
    parts = {first_id: best_query(rows_ND, queries_QD) for first_id, rows_ND in pool}
    score_N, query_N = np.full(pool.rows, -np.inf, np.float32), np.full(pool.rows, -1)
    for first_id, (scores, queries) in parts.items():
        score_N[first_id : first_id + len(scores)] = scores
        query_N[first_id : first_id + len(scores)] = queries
    return score_N, query_N


def _by_row(
    ids_QK: NDArray[np.int64], scores_QK: NDArray[np.float32], rows: int
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Score and query of the nearest of the queries that found each row; -inf and -1 where none did."""
    score_N, query_N = np.full(rows, -np.inf, np.float32), np.full(rows, -1)
    query_P, rank_P = np.nonzero(ids_QK >= 0)
    id_P, score_P = ids_QK[query_P, rank_P], scores_QK[query_P, rank_P]
    order = np.lexsort((-query_P, score_P, id_P))  # of several writes to one place, the last stays
    score_N[id_P[order]], query_N[id_P[order]] = score_P[order], query_P[order]
    return score_N, query_N
