"""Perceptual hashes of pictures, and which of them are close. N, M pictures, P pairs, 64 bits a hash.

A difference hash (dHash) says of 8 x 8 places of the grey picture whether it gets brighter to the right. It finds the
same picture after recompression, resizing, squashing, loss of colour, a frame and, by the hash of its mirror image,
flipping. It does not find crops beyond 5 % a side; embeddings do (`tips_ray.curation.search`).

What unrelated pictures have in common makes their hashes similar. Plain margins, such as a frame or the white around a
product, are therefore cut off before. A plain area inside has no brighter neighbour: the bound of a picture with such
areas is smaller, by one bit for each four equal neighbours beyond 16 of the 64. This keeps the chance that it is close
to an unrelated one about as small as for others. Flat pictures all have the hash 0 and are duplicates of each other.
"""

from collections.abc import Iterator
from itertools import chain, combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

BITS = 64
SIDE = 8
FULL_EDGES = 48
"""Neighbours that must differ for the whole bound to hold."""
EDGES_PER_BIT = 4
CORNER_LEVELS, MARGIN_LEVELS = 12, 4
"""On a scale of 256: how far colours of corners may differ, and the grey of a margin's line from theirs, on average."""
MOST_CANDIDATES = 2**22
"""Candidate pairs that are looked at together; bounds memory at about 200 MB."""

Hashes = NDArray[np.uint64]


def hashes(pixels_HW3: NDArray[np.uint8]) -> tuple[int, int]:
    """Difference hash of a picture and of its mirror image, each below 2**64; the first place is the highest bit."""
    grey = _without_frame(pixels_HW3, Image.fromarray(pixels_HW3).convert("L"))
    places = grey.resize((SIDE + 1, SIDE), Image.Resampling.LANCZOS, reducing_gap=3.0)
    rise_88 = np.diff(np.asarray(places).astype(np.int16), axis=1)
    return _number(rise_88 > 0), _number(rise_88[:, ::-1] < 0)


def _without_frame(pixels_HW3: NDArray[np.uint8], grey: Image.Image) -> Image.Image:
    """The grey picture without equal margins: frames, letterboxes, the background of a thing on white.

    There is a margin where all corners have one colour, and the lines from two opposite sides inwards differ little
    from it. A margin at one side alone, such as a plain sky, stays.
    """
    corners_223 = pixels_HW3[:: max(pixels_HW3.shape[0] - 1, 1), :: max(pixels_HW3.shape[1] - 1, 1)].astype(np.int16)
    if np.ptp(corners_223, axis=(0, 1)).max() > CORNER_LEVELS:
        return grey
    grey_HW = np.asarray(grey).astype(np.int16)
    corners = grey_HW[[0, 0, -1, -1], [0, -1, 0, -1]]
    differs_HW = np.abs(grey_HW - round(corners.mean()))
    (top, bottom), (left, right) = (_inside(differs_HW.mean(axis=axis) > MARGIN_LEVELS) for axis in (1, 0))
    return grey.crop((left, top, right, bottom))


def _inside(is_busy_L: NDArray[np.bool_]) -> tuple[int, int]:
    """First line and end of what lies between two margins; all lines where one of the margins is missing."""
    busy = np.flatnonzero(is_busy_L)
    if not len(busy) or is_busy_L[0] or is_busy_L[-1]:
        return 0, len(is_busy_L)
    return int(busy[0]), int(busy[-1]) + 1


def _number(bits_88: NDArray[np.bool_]) -> int:
    return int.from_bytes(np.packbits(bits_88).tobytes(), "big")


def distances(a_N: Hashes, b_M: Hashes) -> NDArray[np.uint8]:
    """Number of different bits, [N, M]."""
    return np.bitwise_count(a_N[:, None] ^ b_M[None, :])


def close_pairs(hashes_N: Hashes, mirrored_N: Hashes, most: int) -> NDArray[np.int64]:
    """All pairs of rows i < j that are close, int64 [P, 2], sorted.

    Two rows are close if their hashes, or the hash of one and the mirrored hash of the other, differ in at most `most`
    bits (fewer for pictures with little in them). Rows of equal hashes are all paired with the first of them only, and
    that one stands for them: the pairs connect what is close without a square number of pairs.

    Args:
        hashes_N: first numbers of `hashes`.
        mirrored_N: second numbers of `hashes`.
        most: bits, 0 to 63; 8 is usual.
    """
    _, first_N, group_N = np.unique(hashes_N, return_index=True, return_inverse=True)
    stars_N2 = np.stack([first_N[group_N], np.arange(len(hashes_N))], axis=1)
    _, rows_R = np.unique(np.stack([hashes_N, mirrored_N], axis=1), axis=0, return_index=True)
    edges_R = _edges(hashes_N[rows_R], mirrored_N[rows_R])
    both_R = np.concatenate([hashes_N[rows_R], mirrored_N[rows_R]])
    found = [stars_N2[stars_N2[:, 0] < stars_N2[:, 1]]]
    for joined in _joined(hashes_N[rows_R], both_R, most):
        second_P = joined.second_P % len(rows_R)
        near_P = joined.distance_P <= _bound(np.minimum(edges_R[joined.first_P], edges_R[second_P]), most)
        pairs_P2 = rows_R[np.stack([joined.first_P, second_P], axis=1)[near_P]]
        found.append(np.unique(np.sort(pairs_P2[pairs_P2[:, 0] != pairs_P2[:, 1]], axis=1), axis=0))
    return np.unique(np.concatenate(found), axis=0).astype(np.int64)


def close_to(hashes_N: Hashes, sealed_M: Hashes, sealed_mirrored_M: Hashes, most: int) -> NDArray[np.int64]:
    """Number of the nearest sealed image that is close to each row, the lowest of equally near ones; -1 if none, [N].

    Args:
        hashes_N: first numbers of `hashes` of the pool.
        sealed_M: first numbers of `hashes` of images that must not come near the training set.
        sealed_mirrored_M: their second numbers.
        most: as in `close_pairs`; a sealed image with little in it has a smaller bound.
    """
    distinct_U, group_N = np.unique(hashes_N, return_inverse=True)
    edges_M = _edges(sealed_M, sealed_mirrored_M)
    both_2M = np.stack([np.concatenate([sealed_M, sealed_mirrored_M]), np.tile(edges_M, 2).astype(np.uint64)], axis=1)
    targets_T2, first_T = np.unique(both_2M, axis=0, return_index=True)
    number_T = first_T % max(len(sealed_M), 1)
    nearest_U = np.full(len(distinct_U), np.iinfo(np.int64).max)  # distance, then number, as one integer
    for joined in _joined(distinct_U, targets_T2[:, 0], most):
        near_P = joined.distance_P <= _bound(edges_M[number_T[joined.second_P]], most)
        rank_P = joined.distance_P.astype(np.int64) << 48 | number_T[joined.second_P]
        np.minimum.at(nearest_U, joined.first_P[near_P], rank_P[near_P])
    is_close_U = nearest_U < np.iinfo(np.int64).max
    return np.where(is_close_U, nearest_U & 2**48 - 1, -1)[group_N]


def _edges(hashes_N: Hashes, mirrored_N: Hashes) -> NDArray[np.int64]:
    """Places whose right neighbour differs, of 64, [N]: each sets a bit in exactly one of the two hashes."""
    return np.bitwise_count(hashes_N).astype(np.int64) + np.bitwise_count(mirrored_N)


def _bound(edges_P: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """Most bits in which two pictures with so many edges may differ, at least 0: equal hashes are always close."""
    missing_P = np.maximum(FULL_EDGES - edges_P, 0)
    return np.maximum(most - -(-missing_P // EDGES_PER_BIT), 0)


class _Joined(NamedTuple):
    """Pairs of two lists of hashes, with their distances."""

    first_P: NDArray[np.int64]
    second_P: NDArray[np.int64]
    distance_P: NDArray[np.uint8]


def _joined(a_N: Hashes, b_M: Hashes, most: int) -> Iterator[_Joined]:
    """All pairs that differ in at most `most` bits, some of them more than once.

    Multi-index hashing: the bits are dealt to bands. If each band b differed in more than r_b bits, with
    sum(r_b + 1) > most, the whole would differ in more than `most`; so it suffices to look at the rows that agree in a
    band but for r_b bits (Norouzi et al., arXiv:1307.2982; radii that differ by band: Qin et al., ICDE 2018).
    """
    if not 0 <= most < BITS:
        raise ValueError(f"most ({most}) must be 0 to {BITS - 1} bits")
    bands = min(range(3, BITS + 1), key=lambda bands: _seconds(bands, most, len(a_N), len(b_M)))
    for band, radius in enumerate(_radii(bands, most)):
        if radius >= 0 and len(a_N) and len(b_M):
            yield from _joined_by_band(a_N, b_M, range(band, BITS, bands), radius, most)


def _radii(bands: int, most: int) -> list[int]:
    """Bits in which rows may differ in each band; -1 where a band need not be looked at."""
    return [(most + 1) // bands + (band < (most + 1) % bands) - 1 for band in range(bands)]


def _seconds(bands: int, most: int, rows: int, others: int) -> float:
    """Estimated time of a join with so many bands: tables, look-ups, candidates."""
    total = 0.0
    for band, radius in enumerate(_radii(bands, most)):
        width = len(range(band, BITS, bands))
        masks = sum(comb(width, bits) for bits in range(min(radius, width) + 1))
        total += 1e-8 * 2**width + masks * (3e-5 + 1e-8 * rows + 3e-8 * rows * others / 2**width)
    return total


def _joined_by_band(a_N: Hashes, b_M: Hashes, places: range, radius: int, most: int) -> Iterator[_Joined]:
    """Pairs within `most` bits whose bits at `places` differ in at most `radius`."""
    a_key_N, b_key_M = _keys(a_N, places), _keys(b_M, places)
    a_order_N, b_order_M = np.argsort(a_key_N, kind="stable"), np.argsort(b_key_M, kind="stable")
    a_key_N = a_key_N[a_order_N]  # neighbours in the table are looked up one after the other
    starts = np.concatenate([[0], np.cumsum(np.bincount(b_key_M, minlength=2 ** len(places)))])
    for bits in chain.from_iterable(combinations(range(len(places)), count) for count in range(radius + 1)):
        probe_N = a_key_N ^ np.int64(sum(1 << bit for bit in bits))
        for rows, places_P in _expanded(starts[probe_N], starts[probe_N + 1]):
            first_P, second_P = a_order_N[rows], b_order_M[places_P]
            distance_P = np.bitwise_count(a_N[first_P] ^ b_M[second_P])
            near_P = distance_P <= most
            yield _Joined(first_P[near_P], second_P[near_P], distance_P[near_P])


def _keys(hashes_N: Hashes, places: range) -> NDArray[np.int64]:
    """The bits at `places` as one number; neighbouring bits, which are alike in plain areas, lie in different bands."""
    key_N = np.zeros(len(hashes_N), np.int64)
    for place in places:
        key_N = key_N << 1 | (hashes_N >> np.uint64(place) & np.uint64(1)).astype(np.int64)
    return key_N


def _expanded(start_N: NDArray[np.int64], end_N: NDArray[np.int64]) -> Iterator[tuple[NDArray, NDArray]]:
    """Row n and each number from start to end, for all n, in parts of about `MOST_CANDIDATES` pairs."""
    rows = np.flatnonzero(end_N > start_N)
    count = end_N[rows] - start_N[rows]
    last = np.cumsum(count)
    full = np.arange(MOST_CANDIDATES, int(last[-1]) if len(rows) else 0, MOST_CANDIDATES)
    for part in np.split(np.arange(len(rows)), np.unique(np.searchsorted(last, full, side="right"))):
        if len(part):
            count_R = count[part]
            offset_P = np.arange(int(count_R.sum())) - np.repeat(np.cumsum(count_R) - count_R, count_R)
            yield np.repeat(rows[part], count_R), np.repeat(start_N[rows[part]], count_R) + offset_P
