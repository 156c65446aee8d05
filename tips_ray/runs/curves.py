"""Curves of a run as a judge reads them: where a metric stands lately, and where it goes."""

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from math import isfinite, nan, sqrt
from statistics import median
from typing import Any, Literal, NamedTuple

LEAST_POINTS = 8
"""Fewer logged steps than these tell no direction."""
MOST_POINTS = 24
"""A window with more is cut into so many parts, each with its median: neighbouring steps are not independent."""
ENDS = 3
"""Fewest values whose median stands for an end of a curve."""
WINDOW = 1 / 3
"""Share of the curve, at its end, whose direction counts."""
SIGNIFICANT = 2.576
"""Normal score of a two-sided test at 1 %."""
Point = tuple[float, float]
"""Step and value."""


class Trend(NamedTuple):
    """Direction of a part of a curve, and the medians at its ends."""

    direction: Literal["falling", "flat", "rising"]
    first: float
    last: float
    steps: int
    """Optimizer steps that the part covers."""


def trend_of(points: Sequence[Point], least_change: float = 0.0) -> Trend:
    """Direction by the Mann-Kendall test at 1 %, which only counts the pairs that rise; no outlier decides.

    Args:
        points: by step; with fewer than `LEAST_POINTS` a curve is flat.
        least_change: a smaller difference between the ends counts as flat, whatever the test says.

    Source: Mann, Econometrica 13 (1945).
    """
    if not points:
        return Trend("flat", nan, nan, 0)
    shown, ends = thinned(points), max(ENDS, len(points) // 8)
    score = sum((later > earlier) - (later < earlier) for (_, earlier), (_, later) in combinations(shown, 2))
    first, last = (median(value for _, value in part) for part in (points[:ends], points[-ends:]))
    count = len(shown)
    is_sure = abs(score) - 1 > SIGNIFICANT * sqrt(count * (count - 1) * (2 * count + 5) / 18)
    changes = count >= LEAST_POINTS and is_sure and (last - first) * score > least_change * abs(score)
    direction = "flat" if not changes else "rising" if score > 0 else "falling"
    return Trend(direction, first, last, int(points[-1][0] - points[0][0]))


def last_part(points: Sequence[Point]) -> Sequence[Point]:
    """The last third, and at least `LEAST_POINTS`."""
    return points[-max(LEAST_POINTS, round(WINDOW * len(points))) :]


def thinned(points: Sequence[Point]) -> list[Point]:
    """Medians of at most `MOST_POINTS` parts of a curve."""
    count = min(len(points), MOST_POINTS)
    bounds = [len(points) * part // count for part in range(count + 1)]
    parts = [points[start:stop] for start, stop in pairwise(bounds)]
    return [(median(step for step, _ in part), median(value for _, value in part)) for part in parts]


class Curves:
    """The metrics of the logged steps after the learning rate's warm-up; values that are not finite are left out."""

    def __init__(self, lines: Sequence[Mapping[str, Any]], after_step: int) -> None:
        self.lines = [line for line in lines if line["step"] > after_step]

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def step(self) -> int:
        return self.lines[-1]["step"] if self.lines else 0

    def points(self, name: str) -> list[Point]:
        values = ((line["step"], line.get(name)) for line in self.lines)
        return [(step, value) for step, value in values if value is not None and isfinite(value)]

    def recent(self, name: str) -> float:
        """Median of the last values: three, or a twentieth of a long curve; nan where there are none."""
        values = [value for _, value in self.points(name)]
        return median(values[-max(ENDS, len(values) // 20) :]) if values else nan

    def trend(self, name: str, least_change: float = 0.0) -> Trend:
        """Direction over the last third, see `trend_of`."""
        return trend_of(last_part(self.points(name)), least_change)
