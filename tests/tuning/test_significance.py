"""Verdicts compared with hand arithmetic."""

import pytest

from tips_ray.config.ablation import DirectionConfig
from tuning.ablations.significance import Gain, Measured, gain, verdict

BETTER = DirectionConfig(row="a", over="b", metric="m", paper="")
SAME = DirectionConfig(row="a", over="b", metric="m", paper="", expect="same", within=0.1)


def test_one_seed_is_judged_by_the_errors_over_test_images():
    found = gain(Measured((0.5,), 0.03), Measured((0.3,), 0.04), "higher")
    assert found == pytest.approx((0.2, 0.1))  # 2 sqrt(0.03^2 + 0.04^2)


def test_several_seeds_are_judged_by_the_spread_of_their_own_differences():
    """Both vary much and alike: the differences are 0.1, 0.2, 0.3; the error of their mean is 0.1 / sqrt(3)."""
    found = gain(Measured((1.1, 5.2, 9.3), 9.0), Measured((1.0, 5.0, 9.0), 9.0), "higher")
    assert found == pytest.approx((0.2, 0.2 / 3**0.5))


def test_less_is_better_where_the_metric_says_so():
    assert gain(Measured((1.5,), 0.0), Measured((2.0,), 0.0), "lower") == (0.5, 0.0)


@pytest.mark.parametrize(
    ("mean", "margin", "expected"),
    [
        (0.3, 0.2, "shows"),
        (-0.3, 0.2, "does not show"),
        (0.2, 0.3, "cannot tell"),
        (-0.2, 0.3, "cannot tell"),
        (0.0, 0.0, "cannot tell"),
    ],
)
def test_better_means_above_the_margin(mean, margin, expected):
    assert verdict(Gain(mean, margin), BETTER) == expected


@pytest.mark.parametrize(
    ("mean", "margin", "expected"),
    [
        (0.05, 0.02, "shows"),
        (-0.05, 0.02, "shows"),
        (0.2, 0.05, "does not show"),
        (-0.2, 0.05, "does not show"),
        (0.0, 0.2, "cannot tell"),
        (0.2, 0.15, "cannot tell"),
    ],
)
def test_the_same_means_within_the_tolerance_for_certain(mean, margin, expected):
    assert verdict(Gain(mean, margin), SAME) == expected


def test_one_seed_has_no_spread():
    assert Measured((0.5,), 0.1).spread is None
    assert Measured((1.0, 2.0, 3.0), 0.1).spread == 1.0
