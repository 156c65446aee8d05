"""Exact cosine search among unit vectors, in bounded memory. Q queries, N rows of a pool, D width, K nearest, P pairs.

Products are float32, and their rounding depends on where a row lies in a tile. So they only choose candidates, with a
margin for their largest error; the candidates' scores are sums in float64, rounded to float32. Results therefore do not
depend on chunks, tiles, threads or the BLAS library. Vectors may be float16 or float32. One without direction (zero,
NaN or infinite) is near nothing.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array

from tips_ray.curation.components import components
from tips_ray.words import bytes_text

TILE_QUERIES, TILE_ROWS = 1024, 2048
"""Sides of a tile of scores, which has 8 MB; large enough for the product to run at full speed."""
CANDIDATE_BYTES = 64
"""Memory for each candidate of a tile while the nearest are merged."""
EXACT_PAIRS = 4096
"""Pairs whose scores are summed together; bounds memory at about 50 MB."""
ITERATIONS = 10
"""Steps of k-means; the clusters only have to bring near rows together."""
SAMPLES_PER_CLUSTER = 64
"""Rows that k-means looks at, for each cluster."""

Chunks = Iterable[tuple[int, NDArray]]
"""Parts of a pool: id of the first row, rows [N, D]."""


class Nearest(NamedTuple):
    """The nearest rows of each query, best first."""

    scores_QK: NDArray[np.float32]
    """Cosines; -inf where the pool has fewer rows."""
    ids_QK: NDArray[np.int64]
    """Ids in the pool; -1 where it has fewer rows."""


def nearest(queries_QD: NDArray, pool: Chunks, k: int, memory_bytes: int = 2**30) -> Nearest:
    """The k rows of the pool with the highest cosine for each query; of equal ones those of the lowest ids.

    The result is a function of queries and pool, whatever the order and sizes of the chunks.

    Args:
        queries_QD: unit vectors.
        pool: chunks of unit vectors; the rows of one have the ids from its first id on. Each chunk is used once.
        k: neighbours.
        memory_bytes: bound on what is held beside the arguments and one chunk.

    Raises:
        ValueError: k is below 1, widths differ, or the queries do not fit into the memory.
    """
    queries_QD = np.asarray(queries_QD)
    if k < 1:
        raise ValueError(f"k ({k}) must be at least 1")
    of_queries = len(queries_QD) * (4 * queries_QD.shape[1] + 24 * k)
    needed = of_queries + TILE_QUERIES * (CANDIDATE_BYTES * TILE_ROWS + 24 * k)
    if needed > memory_bytes:
        raise ValueError(
            f"{len(queries_QD):,} queries of width {queries_QD.shape[1]} need {bytes_text(needed)}, memory_bytes "
            f"allows {bytes_text(memory_bytes)}: search with fewer queries at a time, or allow more"
        )
    found = [_Best(_Tile.of(queries_QD[start : start + TILE_QUERIES]), k) for start in _starts(queries_QD)]
    for first_id, rows_ND in pool:
        for start in range(0, len(rows_ND), TILE_ROWS):
            rows = _Tile.of(rows_ND[start : start + TILE_ROWS])
            for best in found:
                best.merge(rows, first_id + start)
    scores_QK = np.concatenate([np.empty((0, k), np.float32), *(best.scores_QK for best in found)])
    ids_QK = np.concatenate([np.empty((0, k), np.int64), *(best.ids_QK for best in found)])
    return Nearest(scores_QK, np.where(scores_QK > -np.inf, ids_QK, -1))


def best_query(pool_ND: NDArray, queries_QD: NDArray) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Highest cosine of each row with any query, and that query, the first of equally near ones; [N] each.

    A row or query without direction gives -inf and -1.
    """
    parts = [nearest(pool_ND[start : start + TILE_QUERIES], [(0, queries_QD)], 1, 2**62) for start in _starts(pool_ND)]
    scores = [np.empty(0, np.float32), *(part.scores_QK[:, 0] for part in parts)]
    return np.concatenate(scores), np.concatenate([np.empty(0, np.int64), *(part.ids_QK[:, 0] for part in parts)])


def similar_pairs(
    blocks: Sequence[NDArray], threshold: float, clusters: int | None = None, seed: int = 0
) -> Iterator[NDArray[np.int64]]:
    """Pairs of rows i < j whose cosine is at least `threshold`, in parts of int64 [P, 2].

    Where a tile has more pairs than rows, as among many copies of one picture, its pairs are replaced by fewer that
    connect the same rows. With `clusters` a pair may come twice.

    Args:
        blocks: unit vectors [N, D], as memory-mapped arrays or anything that loads them; rows are numbered through.
        threshold: least cosine.
        clusters: None compares all with all, N**2 * D operations. With a number the rows are put into so many clusters
            by k-means, and two are compared if one's cluster is the nearest or second nearest of the other. This takes
            about 3 * N**2 * D / clusters operations and 2 * N * D * clusters for the clusters. It found all pairs
            where rows lie in groups, and .93 to .97 where they lie anywhere (benchmarks/README.md).
        seed: of the rows with which k-means starts.
    """
    if clusters is not None and clusters > 1 and any(map(len, blocks)):
        yield from _clustered_pairs(blocks, threshold, clusters, seed)
        return
    firsts = _firsts(blocks)
    for left, left_block in enumerate(blocks):
        ids = np.arange(firsts[left], firsts[left + 1])
        yield from _pairs_of(left_block, left_block, ids, ids, threshold)
        for right in range(left + 1, len(blocks)):
            others = np.arange(firsts[right], firsts[right + 1])
            yield from _pairs_of(left_block, blocks[right], ids, others, threshold)


def _pairs_of(
    left_LD: NDArray, right_RD: NDArray, left_ids: NDArray, right_ids: NDArray, threshold: float
) -> Iterator[NDArray[np.int64]]:
    """Similar pairs of one row of the left and one of the right, which are the same rows or have none in common."""
    for start in _starts(left_LD):
        queries, ids = _Tile.of(left_LD[start : start + TILE_QUERIES]), left_ids[start : start + TILE_QUERIES]
        for begin in range(0, len(right_RD), TILE_ROWS):
            others = right_ids[begin : begin + TILE_ROWS]
            if left_ids is right_ids and others[-1] <= ids[0]:
                continue  # below the diagonal
            rows = _Tile.of(right_RD[begin : begin + TILE_ROWS])
            first_P, second_P = _similar(queries, rows, threshold)
            pairs_P2 = np.stack([ids[first_P], others[second_P]], axis=1)
            if left_ids is right_ids:
                pairs_P2 = pairs_P2[pairs_P2[:, 0] < pairs_P2[:, 1]]
            yield _connecting(np.sort(pairs_P2, axis=1))


def _similar(queries: "_Tile", rows: "_Tile", threshold: float) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Query and row of each pair of two tiles whose score is at least the threshold."""
    scores_QT, margin = _products(queries, rows), _margin(queries, rows)
    places = np.flatnonzero(scores_QT >= threshold - margin)
    first_P, second_P = np.divmod(places, scores_QT.shape[1])
    doubtful = np.flatnonzero(scores_QT.ravel()[places] < threshold + margin)
    is_similar_P = np.ones(len(places), bool)
    exact = _exact_scores(queries, rows, first_P[doubtful], second_P[doubtful])
    is_similar_P[doubtful] = exact >= np.float32(threshold)
    return first_P[is_similar_P], second_P[is_similar_P]


def _connecting(pairs_P2: NDArray[np.int64]) -> NDArray[np.int64]:
    """The pairs, or fewer that connect the same rows: each with the lowest row of its component."""
    rows, place = np.unique(pairs_P2, return_inverse=True)
    if len(pairs_P2) <= len(rows):
        return pairs_P2
    lowest = components(len(rows), place.reshape(-1, 2))
    stars_R2 = np.stack([rows[lowest], rows], axis=1)
    return stars_R2[stars_R2[:, 0] < stars_R2[:, 1]]


def _clustered_pairs(
    blocks: Sequence[NDArray], threshold: float, clusters: int, seed: int
) -> Iterator[NDArray[np.int64]]:
    firsts = _firsts(blocks)
    centres_CD = _centres(blocks, firsts, clusters, seed)
    assigned = [nearest(block, [(0, centres_CD)], 2, 2**62).ids_QK for block in blocks]
    cluster_N2 = np.concatenate([np.empty((0, 2), np.int64), *assigned])
    members_of, visitors_of = (_rows_by_cluster(cluster_N2[:, rank], len(centres_CD)) for rank in (0, 1))
    for members, visitors in zip(members_of, visitors_of, strict=True):
        members_MD, visitors_VD = _rows(blocks, firsts, members), _rows(blocks, firsts, visitors)
        yield from _pairs_of(members_MD, members_MD, members, members, threshold)
        yield from _pairs_of(members_MD, visitors_VD, members, visitors, threshold)


def _rows_by_cluster(cluster_N: NDArray[np.int64], clusters: int) -> list[NDArray[np.int64]]:
    """The rows of each cluster, ascending; rows of cluster -1 are in none."""
    order_N = np.argsort(cluster_N, kind="stable")
    return np.split(order_N, np.searchsorted(cluster_N[order_N], np.arange(clusters + 1)))[1:-1]


def _centres(blocks: Sequence[NDArray], firsts: NDArray, clusters: int, seed: int) -> NDArray[np.float32]:
    """Spherical k-means on a sample of the rows; a cluster without rows keeps its centre. [C, D]"""
    numbers = np.random.default_rng(seed)
    size = min(int(firsts[-1]), clusters * SAMPLES_PER_CLUSTER)
    sample_ND = _rows(blocks, firsts, np.sort(numbers.choice(int(firsts[-1]), size, replace=False))).astype(np.float32)
    sample_ND = sample_ND[_have_direction(sample_ND)]
    centres_CD = sample_ND[numbers.permutation(len(sample_ND))[:clusters]]
    for _ in range(ITERATIONS):
        _, cluster_N = best_query(sample_ND, centres_CD)
        ones_N, shape = np.ones(len(sample_ND), np.float32), (len(centres_CD), len(sample_ND))
        sums_CD = coo_array((ones_N, (cluster_N, np.arange(len(sample_ND)))), shape).tocsr() @ sample_ND
        norm_C1 = np.linalg.norm(sums_CD, axis=1, keepdims=True)
        centres_CD = np.where(norm_C1 > 0, sums_CD / np.maximum(norm_C1, 1e-30), centres_CD)
    return centres_CD


def _firsts(blocks: Sequence[NDArray]) -> NDArray[np.int64]:
    """Number of the first row of each block, and of the end."""
    return np.cumsum([0, *(len(block) for block in blocks)])


def _rows(blocks: Sequence[NDArray], firsts: NDArray, ids: NDArray[np.int64]) -> NDArray:
    """The rows of ascending ids, read from their blocks."""
    cuts = np.searchsorted(ids, firsts)
    parts = [
        block[ids[start:end] - first]
        for block, first, start, end in zip(blocks, firsts[:-1], cuts[:-1], cuts[1:], strict=True)
        if end > start
    ]
    return np.concatenate(parts) if parts else np.empty((0, blocks[0].shape[1]), np.float32)


class _Tile(NamedTuple):
    """Some vectors as float32; those without direction are zero."""

    rows_TD: NDArray[np.float32]
    without: NDArray[np.int64]
    """Rows without direction."""
    longest: float
    """Largest norm, 1 for unit vectors."""

    @classmethod
    def of(cls, rows_ND: NDArray) -> "_Tile":
        rows_TD = np.array(rows_ND, np.float32, order="C")
        has_direction = _have_direction(rows_TD)
        rows_TD[~has_direction] = 0
        return cls(rows_TD, np.flatnonzero(~has_direction), float(np.linalg.norm(rows_TD, axis=1).max()))


def _have_direction(rows_ND: NDArray[np.float32]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        squares_N = np.einsum("nd,nd->n", rows_ND, rows_ND)
    return np.isfinite(squares_N) & (squares_N > 0)


def _products(queries: _Tile, rows: _Tile) -> NDArray[np.float32]:
    """Rounded scores, [queries, rows]; -inf where one of the two has no direction."""
    if queries.rows_TD.shape[1] != rows.rows_TD.shape[1]:
        raise ValueError(f"queries of width {queries.rows_TD.shape[1]} meet rows of width {rows.rows_TD.shape[1]}")
    scores_QT = queries.rows_TD @ rows.rows_TD.T
    scores_QT[queries.without] = -np.inf
    scores_QT[:, rows.without] = -np.inf
    return scores_QT


def _margin(queries: _Tile, rows: _Tile) -> np.float32:
    """Largest error of a product: D roundings of half a unit, each at most of the product of the norms."""
    width = queries.rows_TD.shape[1]
    return np.float32((width + 2) * np.finfo(np.float32).eps * queries.longest * rows.longest)


def _exact_scores(
    queries: _Tile, rows: _Tile, query_P: NDArray[np.int64], row_P: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Score of each pair, which depends on nothing but its two vectors."""
    scores_P = np.empty(len(query_P), np.float32)
    for start in range(0, len(query_P), EXACT_PAIRS):
        part = slice(start, start + EXACT_PAIRS)
        left_PD, right_PD = queries.rows_TD[query_P[part]], rows.rows_TD[row_P[part]]
        scores_P[part] = np.einsum("pd,pd->p", left_PD, right_PD, dtype=np.float64)
    return scores_P


class _Best:
    """The nearest rows so far of a tile of queries, best first."""

    def __init__(self, queries: _Tile, k: int) -> None:
        self.queries = queries
        self.scores_QK = np.full((len(queries.rows_TD), k), -np.inf, np.float32)
        self.ids_QK = np.full((len(queries.rows_TD), k), np.iinfo(np.int64).max)

    def merge(self, rows: _Tile, first_id: int) -> None:
        """Add rows with ids from `first_id` on."""
        k = self.ids_QK.shape[1]
        query_P, row_P = self._candidates(_products(self.queries, rows), _margin(self.queries, rows))
        queries = np.unique(query_P)
        scores_P = _exact_scores(self.queries, rows, query_P, row_P)
        query_C = np.concatenate([np.repeat(queries, k), query_P])
        score_C = np.concatenate([self.scores_QK[queries].ravel(), scores_P])
        id_C = np.concatenate([self.ids_QK[queries].ravel(), first_id + row_P])
        order = np.lexsort((id_C, -score_C, query_C))
        chosen = order[np.searchsorted(query_C[order], queries)[:, None] + np.arange(k)]
        self.scores_QK[queries], self.ids_QK[queries] = score_C[chosen], id_C[chosen]

    def _candidates(
        self, scores_QT: NDArray[np.float32], margin: np.float32
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Query and row of each pair that may be among the nearest."""
        rows, k = scores_QT.shape[1], self.ids_QK.shape[1]
        least_Q1 = np.maximum(self.scores_QK[:, -1:] - margin, np.finfo(np.float32).min)
        is_near_QT = scores_QT >= least_Q1
        if k < rows and np.count_nonzero(is_near_QT) > 4 * k * len(scores_QT):  # such as in the first tile
            kth_Q1 = scores_QT.max(1, keepdims=True) if k == 1 else np.partition(scores_QT, -k, axis=1)[:, [-k]]
            is_near_QT &= scores_QT >= kth_Q1 - margin
        return np.divmod(np.flatnonzero(is_near_QT), rows)


def _starts(rows_ND: NDArray) -> range:
    return range(0, len(rows_ND), TILE_QUERIES)
