"""Connected components, and the row that is kept of each."""

import numpy as np
import pytest

from tips_ray.curation.components import components, kept


def test_chains_and_stars_are_components():
    pairs = [(4, 2), (2, 7), (1, 0), (0, 1), (6, 5), (3, 3)]
    assert components(8, pairs).tolist() == [0, 0, 2, 3, 2, 5, 5, 2]
    assert components(3, []).tolist() == [0, 1, 2]
    assert components(0, np.empty((0, 2), int)).tolist() == []


def test_components_do_not_depend_on_the_order_of_pairs():
    numbers = np.random.default_rng(0)
    pairs = numbers.integers(0, 300, (150, 2))
    expected = components(300, pairs)
    assert 100 < len(np.unique(expected)) < 250
    shuffled = numbers.permutation(pairs)[:, ::-1]
    np.testing.assert_array_equal(components(300, np.concatenate([shuffled, shuffled[:20]])), expected)


def test_pairs_outside_the_rows_are_refused():
    with pytest.raises(ValueError, match="pairs name rows 1 to 3; there are rows 0 to 2"):
        components(3, [(1, 3)])


def test_the_lowest_rank_of_a_component_stays():
    component_N = np.array([0, 1, 0, 1, 4, 1])
    assert kept(component_N, [5, 3, 4, 2, 9, 2]).tolist() == [False, False, True, True, True, False]
    largest_N, oldest_N = [-5, -3, -5, -3, 0, -3], [2, 2, 1, 3, 0, 1]
    assert kept(component_N, [oldest_N, largest_N]).tolist() == [False, False, True, False, True, True]
    assert kept(component_N[:0], []).tolist() == []


def test_one_row_of_each_component_stays_whatever_the_order():
    numbers = np.random.default_rng(1)
    component_N, rank_N, order_N = numbers.integers(0, 40, 200), numbers.permutation(200), numbers.permutation(200)
    is_kept_N = kept(component_N, rank_N)
    assert sorted(component_N[is_kept_N]) == list(np.unique(component_N))
    np.testing.assert_array_equal(kept(component_N[order_N], rank_N[order_N]), is_kept_N[order_N])
