"""Judges whether the difference between two rows of an ablation has the expected direction.

A difference counts if it exceeds two standard errors. With several seeds, the error is over the differences between
runs of the same seed, which share initial weights and the order of images. With one seed, it is over the test images
and says nothing about other seeds.
"""

from collections.abc import Sequence
from math import hypot, inf, nan, sqrt
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from tips_ray.config.ablation import DirectionConfig

ERRORS = 2.0
"""(D) Number of standard errors within which a difference may be chance."""
Verdict = Literal["shows", "does not show", "cannot tell"]


class Measured(NamedTuple):
    """A score of one row."""

    values: tuple[float, ...]
    """One value per seed."""
    error: float | None
    """Standard error of the first seed's value over the test images; None for what a run logs."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for a single seed."""
        return stdev(self.values) if len(self.values) > 1 else None


class Gain(NamedTuple):
    """Difference by which a row is better than another, and the margin of error, infinite where none is known."""

    mean: float
    margin: float


def gain(row: Measured | None, over: Measured | None, better: Literal["higher", "lower"]) -> Gain:
    """How much better `row` is than `over`; positive if it is better, NaN if one of them was not measured."""
    if row is None or over is None:
        return Gain(nan, inf)
    sign = 1 if better == "higher" else -1
    differences = [sign * (one - other) for one, other in zip(row.values, over.values, strict=True)]
    return Gain(fmean(differences), ERRORS * _error(differences, row, over))


def _error(differences: Sequence[float], row: Measured, over: Measured) -> float:
    if len(differences) > 1:
        return stdev(differences) / sqrt(len(differences))
    if row.error is None or over.error is None:
        return inf
    return hypot(row.error, over.error)  # as if the rows had different test images; rather too large than too small


def verdict(found: Gain, direction: DirectionConfig) -> Verdict:
    """Whether the gain shows what the direction expects; `does not show` means that the opposite shows."""
    if direction.expect == "same":
        low, high = abs(found.mean) - found.margin, abs(found.mean) + found.margin
        return "shows" if high <= direction.within else "does not show" if low > direction.within else "cannot tell"
    if not abs(found.mean) > found.margin:
        return "cannot tell"
    return "shows" if found.mean > 0 else "does not show"
