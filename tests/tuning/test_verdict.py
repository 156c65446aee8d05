"""Claims by hand arithmetic, and how often they are wrong where there is no difference."""

import numpy as np
import pytest

from tuning.comparison.verdict import Difference, claims, difference, fewest_pairs, holm

BASE = (1.0, 5.0, 2.0, 8.0, 3.0, 9.0)


def test_six_pairs_that_all_agree_are_the_fewest_for_a_claim():
    """Two of 64 signs are as extreme: p = 2/64. The differences 1..6 have mean 3.5 and error 1.870829 / sqrt(6)."""
    found = difference([base + step for base, step in zip(BASE, range(1, 7), strict=True)], BASE, "higher", True)
    assert (found.seeds, found.mean, found.p) == (6, pytest.approx(3.5), pytest.approx(2 / 64))
    margin = 2.570582 * 1.870829 / 6**0.5  # t of 5 degrees of freedom
    assert (found.low, found.high) == pytest.approx((3.5 - margin, 3.5 + margin), abs=1e-5)
    assert claims([found]) == ["better"]
    five = difference([base + 1 for base in BASE[:5]], BASE[:5], "higher", True)
    assert five.p == pytest.approx(2 / 32) and claims([five]) == ["no claim"]


def test_several_comparisons_need_more_pairs():
    """3 x 2/64 = .094, 3 x 2/128 = .047."""
    assert [fewest_pairs(count) for count in (1, 2, 3, 4)] == [6, 7, 7, 8]


def test_less_is_better_where_it_is_said():
    lower = [base - step for base, step in zip(BASE, range(1, 7), strict=True)]
    assert claims([difference(lower, BASE, "lower", True)]) == ["better"]
    assert claims([difference(lower, BASE, "higher", True)]) == ["worse"]


def test_pairs_save_what_they_have_in_common():
    """Differences of variance 3.5 beside values of variance 11.067 and 2 x 11.067 + 3.5 at most."""
    values = [base + step for base, step in zip(BASE, range(1, 7), strict=True)]
    found = difference(values, BASE, "higher", True)
    assert found.correlation == pytest.approx(np.corrcoef(values, BASE)[0, 1])
    assert found.saved == pytest.approx(1 - 3.5 / (np.var(values, ddof=1) + np.var(BASE, ddof=1)))
    alone = difference(values, BASE, "higher", False)
    assert (alone.correlation, alone.saved) == (None, None) and alone.p > 0.1 and claims([alone]) == ["no claim"]


def test_one_run_and_equal_runs_claim_nothing():
    assert claims([difference([2.0], [1.0], "higher", paired) for paired in (True, False)]) == ["no claim"] * 2
    assert claims([difference(BASE, BASE, "higher", paired) for paired in (True, False)]) == ["no claim"] * 2


def test_holm_by_hand():
    """.01 x 3, .02 x 2, .04 x 1; a later one is never below an earlier one."""
    assert holm([0.04, 0.01, 0.02]) == pytest.approx([0.04, 0.03, 0.04])
    found = Difference(6, True, 1.0, 0.5, 1.5, 0.03, None, None)
    assert claims([found]) == ["better"] and claims([found, found]) == ["no claim", "no claim"]


@pytest.mark.heavy
@pytest.mark.parametrize(("count", "is_paired"), [(3, True), (6, True), (10, True), (6, False)])
def test_where_there_is_no_difference_at_most_five_percent_claim_one(count, is_paired):
    """2,000 comparisons; values of a seed vary together, as those of two settings do."""
    rng = np.random.default_rng(count)
    wrong = 0
    for _ in range(2000):
        shared = rng.normal(size=count)
        one, other = (shared * is_paired + rng.normal(size=count) for _ in range(2))
        wrong += claims([difference(one.tolist(), other.tolist(), "higher", is_paired)]) != ["no claim"]
    assert wrong <= 100 and (count >= 6 or wrong == 0)
