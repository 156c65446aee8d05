"""Perceptual hashes and the search for close ones."""

import numpy as np
import pytest
from planted import planted

from tips_ray.curation import hashes as module
from tips_ray.curation.hashes import close_pairs, close_to, distances, hashes
from tips_ray.scenes import render_scene

ALL = 2**64 - 1
HALF = 0xFFFFFFFF00000000
"""32 bits: with no mirrored bit, a picture of which half of the neighbours differ."""


def _numbers(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def _of_pictures(pictures: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    found = [hashes(picture) for picture in pictures]
    return _numbers(*(plain for plain, _ in found)), _numbers(*(mirrored for _, mirrored in found))


def _random(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 2**64, count, np.uint64, endpoint=False)


def _mirrored(plain: np.ndarray) -> np.ndarray:
    """Mirrored hashes of pictures without equal neighbours: the other bits, each row of places reversed."""
    bits = np.unpackbits(plain[:, None].view(np.uint8), axis=1).reshape(-1, 8, 8)
    return np.packbits(1 - bits[:, :, ::-1], axis=2).reshape(-1, 8).copy().view(np.uint64)[:, 0]


def _changed(value: np.uint64, bits: int, numbers: np.random.Generator) -> np.uint64:
    return value ^ np.bitwise_or.reduce(np.uint64(1) << numbers.choice(64, bits, replace=False).astype(np.uint64))


def test_a_bit_says_that_the_right_neighbour_is_brighter():
    flat = np.full((8, 9, 3), 100, np.uint8)
    assert hashes(flat) == (0, 0)
    spots = flat.copy()
    spots[0, 1] = 200  # brighter than its left neighbour (place 0); in the mirror image it is at column 7 (place 6)
    spots[7, 8] = 130  # brighter than its left neighbour (place 63); in the mirror image it has none
    assert hashes(spots) == (1 << 63 | 1, 1 << 57)
    ramp = np.broadcast_to(np.arange(0, 252, 28, dtype=np.uint8)[None, :, None], (8, 9, 3)).copy()
    assert hashes(ramp) == (ALL, 0)


def test_the_mirror_image_has_the_two_hashes_the_other_way_round():
    for index in range(20):
        picture = render_scene(1, index).image_HWC
        assert hashes(picture[:, ::-1].copy()) == hashes(picture)[::-1]


def test_plain_margins_at_opposite_sides_do_not_count():
    inner = np.random.default_rng(0).integers(0, 256, (40, 60, 3), np.uint8)
    inner[0, 0] = 255  # its own corners differ
    for top, bottom, left, right in ((9, 9, 9, 9), (20, 5, 0, 0), (0, 0, 8, 16)):
        for colour in (0, 255):
            framed = np.pad(inner, ((top, bottom), (left, right), (0, 0)), constant_values=colour)
            assert hashes(framed) == hashes(inner)
    inner[[0, 0, -1, -1], [0, -1, 0, -1]] = 0
    one_side = np.pad(inner, ((20, 0), (0, 0), (0, 0)))
    assert bin(hashes(one_side)[0] ^ hashes(inner)[0]).count("1") > 12


def test_odd_shapes_have_hashes():
    for shape in ((1, 1, 3), (1, 5000, 3), (3000, 2, 3), (301, 257, 3)):
        picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        plain, mirrored = hashes(picture)
        assert 0 <= plain <= ALL and 0 <= mirrored <= ALL


def test_distances_count_bits():
    found = distances(_numbers(0, 0b1011), _numbers(0, 0b1000, ALL))
    assert found.tolist() == [[0, 1, 64], [3, 2, 61]] and found.dtype == np.uint8


@pytest.mark.parametrize("most", [0, 2, 8, 10])
@pytest.mark.parametrize("candidates", [2**22, 50])
def test_pairs_are_those_of_a_full_table(most: int, candidates: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "MOST_CANDIDATES", candidates)
    numbers, plain = np.random.default_rng(most), _random(300)
    for row in range(0, 200, 2):  # next to each other, 1 to 12 bits apart; every other one is a mirror image
        origin = plain if row % 4 else _mirrored(plain)
        plain[row] = _changed(origin[row + 1], 1 + row // 2 % 12, numbers)
    mirrored = _mirrored(plain)
    nearest_NN = np.minimum(distances(plain, plain), distances(plain, mirrored))
    expected = np.argwhere(np.triu(np.minimum(nearest_NN, nearest_NN.T) <= most, 1))
    assert len(expected) >= 8 * most
    np.testing.assert_array_equal(close_pairs(plain, mirrored, most), expected)


def test_equal_hashes_make_a_star():
    flat = np.zeros(50_000, np.uint64)
    pairs = close_pairs(flat, flat, 8)
    np.testing.assert_array_equal(pairs, np.stack([np.zeros(49_999, int), np.arange(1, 50_000)], axis=1))
    assert close_pairs(flat[:1], flat[:1], 8).shape == close_pairs(flat[:0], flat[:0], 8).shape == (0, 2)


def test_the_bound_is_smaller_for_pictures_with_little_in_them():
    # 32 of 64 neighbours differ, 16 fewer than 48: the bound is 4 bits smaller
    pair, none = _numbers(HALF, HALF ^ (0b11 << 62) ^ 0b11), _numbers(0, 0)  # 4 bits apart, 32 edges each
    assert len(close_pairs(pair, none, 8)) == 1 and len(close_pairs(pair, none, 7)) == 0
    assert close_to(pair[1:], pair[:1], none[:1], 8).tolist() == [0]
    assert close_to(pair[1:], pair[:1], none[:1], 7).tolist() == [-1]
    full = _numbers(ALL ^ HALF, ALL ^ HALF)  # the other neighbours get darker to the right
    assert len(close_pairs(pair, full, 4)) == 1


@pytest.mark.parametrize("most", [4, 10])
def test_the_nearest_sealed_picture_is_found(most: int):
    numbers, sealed, pool = np.random.default_rng(0), _random(60, seed=1), _random(400, seed=2)
    sealed_mirrored = _mirrored(sealed)
    for row in range(200):
        origin = sealed if row % 2 else sealed_mirrored
        pool[row] = _changed(origin[row % 60], 1 + row % 12, numbers)
    nearest_NM = np.minimum(distances(pool, sealed), distances(pool, sealed_mirrored))
    expected = np.where(nearest_NM.min(axis=1) <= most, nearest_NM.argmin(axis=1), -1)
    assert 50 < (expected >= 0).sum() < 200
    np.testing.assert_array_equal(close_to(pool, sealed, sealed_mirrored, most), expected)


def test_of_equally_near_sealed_pictures_the_first_counts():
    plain = _random(1)
    mirrored = _mirrored(plain)
    assert close_to(plain, plain.repeat(3), mirrored.repeat(3), 8).tolist() == [0]
    assert close_to(plain, plain[:0], mirrored[:0], 8).tolist() == [-1]
    assert close_to(plain[:0], plain, mirrored, 8).tolist() == []


def test_a_bound_that_is_no_number_of_bits_is_refused():
    with pytest.raises(ValueError, match=r"most \(64\) must be 0 to 63 bits"):
        close_pairs(_random(2), _random(2), 64)


SHARES = {
    "recompressed": 0.97,
    "resized": 0.97,
    "squashed": 0.97,
    "grey": 0.95,
    "flipped": 1.0,
    "flipped and recompressed": 0.97,
    "border": 0.97,
    "bar": 0.8,
    "crop 5 %": 0.1,
}
"""Least share of planted pictures that hashes have to find; they need not find larger crops."""


def test_things_on_white_are_not_alike_because_of_the_white():
    things = []
    for index in range(80):
        page = np.full((120, 120, 3), 255, np.uint8)
        place, side = 10 + index % 7 * 6, 40 + index % 5 * 6
        page[place : place + side, 12 : 12 + side] = render_scene(5, index, side).image_HWC
        things.append(page)
    found = [planted(thing, "recompressed") for thing in things]
    pairs = close_pairs(*_of_pictures(things + found), 8)
    right = pairs[:, 1] == pairs[:, 0] + len(things)
    assert right.all() and right.sum() >= 0.7 * len(things), (right.sum(), pairs[~right])


def test_planted_copies_of_scenes_are_found_and_nothing_else():
    scenes = [render_scene(0, index).image_HWC for index in range(60)]
    for kind, share in SHARES.items():
        copies = [planted(scene, kind) for scene in scenes]
        pairs = close_pairs(*_of_pictures(scenes + copies), 8)
        right = pairs[:, 1] == pairs[:, 0] + len(scenes)
        assert right.all() and right.sum() >= share * len(scenes), (kind, right.sum(), pairs[~right])
