"""Plots of a comparison as inline SVG: metrics of all settings over steps, and differences with their intervals."""

from collections.abc import Iterator, Sequence
from math import isfinite
from statistics import fmean, stdev
from typing import NamedTuple

from tips_ray.report.charts import (
    BOTTOM,
    HEIGHT,
    TOP,
    WIDTH,
    Frame,
    grid,
    path,
    round_ticks,
    thinned,
    value_range,
)
from tips_ray.report.html import Html, joined, tag
from tuning.comparison.compare import Comparison
from tuning.comparison.run import Point
from tuning.comparison.setting import Metric, Setting
from tuning.comparison.verdicts import Verdict

COLOURS = 8
"""Colours that the page has; further settings take them again, with dashes."""
ROW = 26
"""Height of a row of differences."""
CSS = """
.charts { grid-template-columns: repeat(auto-fill, minmax(min(440px, 100%), 1fr)); }
.claim { white-space: nowrap; } ul { margin: 12px 0 0; padding-left: 1.2em; font-size: .88rem; }
.series { fill: none; stroke-width: 2; stroke-linejoin: round; stroke: var(--c); }
.one { stroke-width: .8; opacity: .35; }
.band { fill: var(--c); opacity: .14; stroke: none; } .again { stroke-dasharray: 5 3; }
.end { stroke: var(--bad); stroke-width: 2; fill: none; } .zero { stroke: var(--soft); }
.dot { fill: var(--c); opacity: .55; } .mean { fill: var(--c); stroke: var(--card); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 0 0 12px; font-size: .88rem; }
.legend i { display: inline-block; width: 18px; border-top: 3px solid var(--c);
  vertical-align: middle; margin-right: 6px; }
.legend i.again { border-top-style: dashed; }
.c0 { --c: #3f51c8; } .c1 { --c: #c2571a; } .c2 { --c: #16794a; } .c3 { --c: #a3348f; }
.c4 { --c: #0f7f9c; } .c5 { --c: #8a6d00; } .c6 { --c: #b3372c; } .c7 { --c: #646a75; }
@media (prefers-color-scheme: dark) {
.c0 { --c: #93a0ff; } .c1 { --c: #ff9d66; } .c2 { --c: #5fd39a; } .c3 { --c: #ec8ad8; }
.c4 { --c: #5ecbe8; } .c5 { --c: #e0c14a; } .c6 { --c: #ff8a7d; } .c7 { --c: #aab1bc; } }
"""


class Mean(NamedTuple):
    """The runs of a setting at a step that all of them have logged."""

    amount: float
    mean: float
    spread: float
    """Standard deviation; 0 for one run."""


def colour(found: Comparison, setting: Setting) -> str:
    """Classes of a setting's colour."""
    place = found.settings.index(setting)
    return f"c{place % COLOURS}{' again' if place >= COLOURS else ''}"


def legend(found: Comparison) -> Html:
    """Colours of the settings."""
    each = (
        tag("span", tag("i", class_=f"{colour(found, one)}"), one.label, class_=colour(found, one).split()[0])
        for one in found.settings
    )
    return tag("div", joined(each), class_="legend")


def means(setting: Setting, metric: Metric) -> list[Mean]:
    """Mean and spread over the runs that have not diverged, at steps that all of these have logged."""
    healthy = [run for run in setting.runs if not run.divergence(metric.name)]
    by_step: dict[int, list[Point]] = {}
    for run in healthy:
        for point in run.points(metric.name):
            if isfinite(point.value):
                by_step.setdefault(point.step, []).append(point)
    found = []
    for _, points in sorted(by_step.items()):
        if len(points) == len(healthy):
            values = [point.value for point in points]
            spread = stdev(values) if len(values) > 1 else 0.0
            found.append(Mean(fmean(point.amount for point in points), fmean(values), spread))
    return found


def curves(found: Comparison, metric: Metric) -> Html:
    """A metric over the amounts: thin for each run, bold for the mean of a setting, shaded for its spread."""
    frame, ticks = _frame(found, metric)
    parts = [*grid(frame, ticks, found.measure.unit), _place(found, frame)]
    for setting in found.settings:
        parts += _band(found, frame, setting, metric)
    for setting in found.settings:
        parts += _lines(found, frame, setting, metric)
    label = f"{metric.name} of {len(found.settings)} settings"
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    better = tag("span", f"{metric.better} is better", class_="label")
    return tag("figure", tag("figcaption", tag("span", metric.name), better), svg, class_="chart")


def _frame(found: Comparison, metric: Metric) -> tuple[Frame, list[float]]:
    """All amounts, and all values of runs that have not diverged: one that has may go through any."""
    runs = [run for setting in found.settings for run in setting.runs]
    healthy = [run for run in runs if not run.divergence(metric.name)] or runs
    values = [value for run in healthy for value in run.values(metric.name)] or [0.0]
    amounts = [amount for run in runs for amount in run.amounts]
    ticks = round_ticks(*value_range(values))
    return Frame(min(amounts), max(amounts), ticks[0], ticks[-1]), ticks


def _place(found: Comparison, frame: Frame) -> Html:
    """Where settings are compared."""
    x = f"{frame.x(found.amount):.1f}"
    title = tag("title", f"compared at {found.place}")
    return tag("line", title, x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark")


def _band(found: Comparison, frame: Frame, setting: Setting, metric: Metric) -> Iterator[Html]:
    over = means(setting, metric)
    if len(setting.runs) > 1 and len(over) > 1:
        high = thinned([(one.amount, min(one.mean + one.spread, frame.high)) for one in over])
        low = thinned([(one.amount, max(one.mean - one.spread, frame.low)) for one in over])
        outline = f"{path(frame, high)}L{path(frame, low[::-1])[1:]}Z"
        yield tag("path", d=outline, class_=f"band {colour(found, setting)}")


def _lines(found: Comparison, frame: Frame, setting: Setting, metric: Metric) -> Iterator[Html]:
    own = colour(found, setting)
    for run in setting.runs:
        points = [(point.amount, _within(frame, point.value)) for point in run.points(metric.name)]
        title = tag("title", f"{run.label}, seed {run.seed}")
        yield tag("path", title, d=path(frame, thinned(points)), class_=f"series one {own}")
        if run.divergence(metric.name):
            yield _cross(frame, [point for point in points if isfinite(point[1])][-1:], run.label)
    over = [(one.amount, one.mean) for one in means(setting, metric)]
    if over:
        yield tag("path", d=path(frame, thinned(over)), class_=f"series {own}")


def _within(frame: Frame, value: float) -> float:
    return min(max(value, frame.low), frame.high) if isfinite(value) else value


def _cross(frame: Frame, last: Sequence[tuple[float, float]], label: str) -> Html:
    """Where a run was before it diverged; nothing if it never had a finite value."""
    if not last:
        return Html("")
    x, y = frame.x(last[0][0]), frame.y(last[0][1])
    shape = f"M{x - 4:.1f} {y - 4:.1f}l8 8M{x - 4:.1f} {y + 4:.1f}l8 -8"
    return tag("path", tag("title", f"{label} diverged after this"), d=shape, class_="end")


def differences(found: Comparison, metric: Metric) -> Html:
    """By how much each setting is better than the baseline: a dot for each pair, the mean and its 95 % interval."""
    rows = [one for one in found.verdicts if one.metric == metric and one.difference]
    if not rows:
        return Html("")
    values = [0.0, *(value for row in rows for value in _extent(row))]
    ticks = round_ticks(*value_range(values))
    frame = Frame(ticks[0], ticks[-1], 0, 1)
    height = TOP + ROW * len(rows) + BOTTOM
    parts = list(_scale(frame, ticks, height))
    for place, row in enumerate(rows):
        parts += _row(found, frame, row, TOP + ROW * (place + 0.5))
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {height}", role="img", aria_label=f"differences in {metric.name}")
    head = tag("span", f"{metric.name} at {found.place}"), tag("span", "to the right: better", class_="label")
    return tag("figure", tag("figcaption", *head), svg, class_="chart")


def _extent(row: Verdict) -> list[float]:
    one = row.difference
    ends = [one.low, one.mean, one.high] if one else []
    return [value for value in (*ends, *(pair.gain for pair in row.pairs)) if isfinite(value)]


def _scale(frame: Frame, ticks: Sequence[float], height: float) -> Iterator[Html]:
    for value in ticks:
        x = f"{frame.x(value):.1f}"
        kind = "zero" if value == 0 else "grid"
        yield tag("line", x1=x, x2=x, y1=TOP, y2=height - BOTTOM, class_=kind)
        yield tag("text", f"{value:g}", x=x, y=height - 6, text_anchor="middle")


def _row(found: Comparison, frame: Frame, row: Verdict, y: float) -> Iterator[Html]:
    one, own = row.difference, colour(found, row.setting)
    if one is None:
        return
    for pair in row.pairs:
        title = tag("title", f"{pair.run.label} against {pair.baseline.label}: {pair.gain:.4g}")
        yield tag("circle", title, cx=f"{frame.x(pair.gain):.1f}", cy=f"{y:.1f}", r=2.5, class_=f"dot {own}")
    if isfinite(one.low) and isfinite(one.high):
        low, high = (f"{frame.x(end):.1f}" for end in (one.low, one.high))
        yield tag("line", x1=low, x2=high, y1=f"{y:.1f}", y2=f"{y:.1f}", class_=f"series {own}")
    title = tag("title", f"{row.setting.label}: {one.mean:.4g}")
    yield tag("circle", title, cx=f"{frame.x(one.mean):.1f}", cy=f"{y:.1f}", r=5, class_=f"mean {own}")
