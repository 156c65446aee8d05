"""Whether the difference between two rows of an ablation goes the way that it should.

A difference counts when it exceeds two standard errors: over seeds, of the differences between runs of the same seed,
which share their first weights and the order of their images; with one seed, over the test images. The latter says
nothing about what another seed would have given.
"""

from collections.abc import Sequence
from math import hypot, sqrt
from statistics import fmean, stdev
from typing import Literal, NamedTuple

from tips_ray.config.ablation import DirectionConfig

ERRORS = 2.0
"""(D) Standard errors within which a difference may be chance."""
Verdict = Literal["shows", "does not show", "cannot tell"]


class Measured(NamedTuple):
    """A score of one row."""

    values: tuple[float, ...]
    """By seed."""
    error: float
    """Standard error over the test images, of the first seed's value."""

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return fmean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over seeds; None for one."""
        return stdev(self.values) if len(self.values) > 1 else None


class Gain(NamedTuple):
    """By how much a row is better than another, and within which margin that is known."""

    mean: float
    margin: float


def gain(row: Measured, over: Measured, better: Literal["higher", "lower"]) -> Gain:
    """How much better `row` is; positive where it is the better one."""
    sign = 1 if better == "higher" else -1
    differences = [sign * (one - other) for one, other in zip(row.values, over.values, strict=True)]
    return Gain(fmean(differences), ERRORS * _error(differences, row, over))


def _error(differences: Sequence[float], row: Measured, over: Measured) -> float:
    if len(differences) > 1:
        return stdev(differences) / sqrt(len(differences))
    return hypot(row.error, over.error)  # as if the test images were others for each: too large rather than too small


def verdict(found: Gain, direction: DirectionConfig) -> Verdict:
    """Whether the gain goes the way that the direction expects; `does not show` means that the contrary shows."""
    if direction.expect == "same":
        low, high = abs(found.mean) - found.margin, abs(found.mean) + found.margin
        return "shows" if high <= direction.within else "does not show" if low > direction.within else "cannot tell"
    if abs(found.mean) <= found.margin:
        return "cannot tell"
    return "shows" if found.mean > 0 else "does not show"
