"""What an encoder retrieves worst on a validation set. N pairs of an image and its caption, D width."""

from math import ceil

import numpy as np
from numpy.typing import NDArray

from tips_ray.curation.search import nearest
from tips_ray.curation.vectors import Vectors


def margins(image_ND: Vectors, text_ND: Vectors) -> NDArray[np.float32]:
    """How surely each pair finds itself, [N]: below 0 where another caption or another image is nearer.

    It is the cosine of the pair, less the highest cosine of its image with another caption or of its caption with
    another image. A pair without an image or a caption gives NaN.
    """
    own_N = np.einsum("nd,nd->n", image_ND, text_ND)
    other_N = np.maximum(_best_other(image_ND, text_ND), _best_other(text_ND, image_ND))
    is_whole_N = (np.abs(image_ND).sum(1) > 0) & (np.abs(text_ND).sum(1) > 0)
    return np.where(is_whole_N, own_N - other_N, np.nan).astype(np.float32)


def _best_other(queries_ND: Vectors, pool_ND: Vectors) -> NDArray[np.float32]:
    """Highest cosine of each row with another row of the pool; -inf where there is none."""
    scores_N2, ids_N2 = nearest(queries_ND, [(0, pool_ND)], 2)
    is_own_N2 = ids_N2 == np.arange(len(queries_ND))[:, None]
    return np.where(is_own_N2, -np.inf, scores_N2).max(1, initial=-np.inf)


def weakest(margin_N: NDArray[np.float32], share: float) -> NDArray[np.int64]:
    """The share of the pairs with the lowest margins, the weakest first; of equal ones the first."""
    whole_M = np.flatnonzero(np.isfinite(margin_N))
    order_M = whole_M[np.argsort(margin_N[whole_M], kind="stable")]
    return order_M[: ceil(share * len(whole_M))]
