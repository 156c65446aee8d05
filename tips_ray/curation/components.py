"""Groups of near-duplicates, and the one that is kept of each. N rows, P pairs, C components."""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


def components(rows: int, pairs_P2: ArrayLike) -> NDArray[np.int64]:
    """Lowest row of the connected component of each row, [N]; it does not depend on the order of the pairs.

    Args:
        rows: N.
        pairs_P2: rows that belong together, [P, 2], in any order and direction, also repeated.

    Raises:
        ValueError: a pair names a row outside [0, N).
    """
    pairs_P2 = np.asarray(pairs_P2, np.int64).reshape(-1, 2)
    if len(pairs_P2) and not 0 <= pairs_P2.min() <= pairs_P2.max() < rows:
        raise ValueError(f"pairs name rows {pairs_P2.min()} to {pairs_P2.max()}; there are rows 0 to {rows - 1}")
    edges = coo_array((np.ones(len(pairs_P2), bool), (pairs_P2[:, 0], pairs_P2[:, 1])), (rows, rows))
    _, label_N = connected_components(edges, directed=False)
    _, lowest_C = np.unique(label_N, return_index=True)
    return lowest_C[label_N].astype(np.int64)


def kept(component_N: NDArray[np.int64], rank_N: ArrayLike) -> NDArray[np.bool_]:
    """True for one row of each component: that of the lowest rank, of equal ranks the lowest row, [N].

    Args:
        component_N: a number for each component, as of `components`.
        rank_N: the rule as a number: what is to stay ranks lowest, such as -pixels to keep the largest picture.
            Several keys, most important last as in `numpy.lexsort`, are rows of [keys, N].
    """
    keys = np.atleast_2d(np.asarray(rank_N))
    order_N = np.lexsort((np.arange(len(component_N)), *keys, component_N))
    first_N = np.ones(len(component_N), bool)
    first_N[1:] = component_N[order_N][1:] != component_N[order_N][:-1]
    is_kept_N = np.zeros(len(component_N), bool)
    is_kept_N[order_N[first_N]] = True
    return is_kept_N
