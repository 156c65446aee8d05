"""Whether one setting is better than another: by pairs of runs on the same batches, or "no claim".

A claim needs six pairs, a sign-flip test below 5 % (by Holm's rule over all that is compared) and a paired-t interval
without zero. Runs that are no pairs are judged by Welch's test and interval, which see less.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from math import sqrt
from statistics import variance
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy import stats

FEWEST_PAIRS = 6
"""(D) With five, the most extreme of 32 signs has a two-sided p of 2/32, which is above `LEVEL`."""
LEVEL = 0.05
MOST_EXACT = 14
"""All signs are tried for up to so many pairs, and as many at random, always the same, for more."""
Claim = Literal["better", "worse", "no claim"]


class Difference(NamedTuple):
    """By how much the runs of a setting are better than those of the baseline in one metric."""

    seeds: int
    """Pairs, or runs of the smaller side where there are none."""
    is_paired: bool
    mean: float
    """Positive: better."""
    low: float
    high: float
    """Ends of the 95 % interval of the mean; not finite where there is one run."""
    p: float
    """Two-sided."""
    correlation: float | None
    """Of the values of pairs; None where one side does not vary, or there are no pairs."""
    saved: float | None
    """Share of the variance that pairing takes away."""


def difference(
    values: Sequence[float], baseline: Sequence[float], better: Literal["higher", "lower"], is_paired: bool
) -> Difference:
    """Difference of a metric between two settings.

    Args:
        values: one for each run of the setting.
        baseline: those of the baseline; with `is_paired` in the same order, each on the same batches.
        better: which values are better.
        is_paired: the runs are pairs.
    """
    sign = 1.0 if better == "higher" else -1.0
    one, other = sign * np.asarray(values, float), sign * np.asarray(baseline, float)
    mean, count = float(one.mean() - other.mean()), min(len(one), len(other))
    if is_paired:
        low, high = _interval(one - other)
        return Difference(count, True, mean, low, high, _sign_flip_p(one - other), *_pairing(one, other))
    return Difference(count, False, mean, *_welch(one, other), None, None)


def claims(differences: Sequence[Difference]) -> list[Claim]:
    """What can be claimed of each difference when all of them are looked at."""
    adjusted = holm([found.p for found in differences])
    return [_claim(found, p) for found, p in zip(differences, adjusted, strict=True)]


def fewest_pairs(comparisons: int) -> int:
    """Pairs that must all agree for a claim, when so many comparisons are looked at."""
    found = FEWEST_PAIRS
    while comparisons * 2 / 2**found >= LEVEL:
        found += 1
    return found


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's adjusted p values, in the given order."""
    adjusted, highest = [0.0] * len(ps), 0.0
    for place, which in enumerate(sorted(range(len(ps)), key=lambda at: ps[at])):
        highest = max(highest, min(ps[which] * (len(ps) - place), 1.0))
        adjusted[which] = highest
    return adjusted


def _claim(found: Difference, p: float) -> Claim:
    if found.seeds < FEWEST_PAIRS or not p < LEVEL or not (found.low > 0 or found.high < 0):
        return "no claim"
    return "better" if found.mean > 0 else "worse"


def _sign_flip_p(differences: np.ndarray) -> float:
    """Share of signs under which the mean of the differences is as far from zero as it is."""
    if len(differences) > MOST_EXACT:
        signs = np.random.default_rng(0).choice((-1.0, 1.0), (2**MOST_EXACT, len(differences)))
    else:
        signs = _all_signs(len(differences))
    means = np.abs(signs @ differences)
    return float((means >= abs(differences.sum()) - 1e-12 * np.abs(differences).sum()).mean())


@cache
def _all_signs(count: int) -> np.ndarray:
    return np.array(list(product((-1.0, 1.0), repeat=count)))


def _interval(differences: np.ndarray) -> tuple[float, float]:
    if len(differences) < 2:
        return -np.inf, np.inf
    half = stats.t.ppf(1 - LEVEL / 2, len(differences) - 1) * differences.std(ddof=1) / sqrt(len(differences))
    return float(differences.mean() - half), float(differences.mean() + half)


def _welch(one: np.ndarray, other: np.ndarray) -> tuple[float, float, float]:
    """Ends of the interval, and p."""
    mean = float(one.mean() - other.mean())
    if min(len(one), len(other)) < 2:
        return -np.inf, np.inf, 1.0
    if not one.std() and not other.std():
        return mean, mean, float(mean == 0)
    found: Any = stats.ttest_ind(one, other, equal_var=False)
    interval = found.confidence_interval(1 - LEVEL)
    return float(interval.low), float(interval.high), float(found.pvalue)


def _pairing(one: np.ndarray, other: np.ndarray) -> tuple[float | None, float | None]:
    if len(one) < 2 or not one.std() or not other.std():
        return None, None
    together = variance(one.tolist()) + variance(other.tolist())
    return float(np.corrcoef(one, other)[0, 1]), 1 - variance((one - other).tolist()) / together
