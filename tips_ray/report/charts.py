"""Line charts as inline SVG; they use the page's colours and so follow its dark mode."""

from collections.abc import Iterable, Mapping, Sequence
from math import ceil, floor, isfinite, log10
from types import MappingProxyType

import numpy as np

from tips_ray.report.html import Html, joined, number, tag

WIDTH, HEIGHT = 360, 200
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
MOST_POINTS = 300
SMOOTHING_POINTS = 30  # a curve with more gets a smoothed line over the measured one
Point = tuple[float, float]


Level = tuple[str, float]
"""Name and value of a horizontal line."""


def line_chart(title: str, points: Sequence[Point], marks: Iterable[float] = (), levels: Sequence[Level] = ()) -> Html:
    """Values over steps, with a dashed line at each of `marks` and `levels`; points that are not finite leave a gap."""
    finite = [point for point in points if isfinite(point[1])]
    if not finite:
        return Html("")
    ticks = round_ticks(*value_range([*(y for _, y in finite), *(value for _, value in levels)]))
    steps = [x for x, _ in points]
    frame = Frame(min(steps), max(steps), ticks[0], ticks[-1])
    parts = [*grid(frame, ticks), *(_mark(frame, step) for step in marks if frame.left < step <= frame.right)]
    parts += [part for level in levels for part in _level(frame, *level)]
    parts += _curves(frame, thinned(points))
    last = tag("span", number(finite[-1][1]), class_="last")
    label = f"{title}, from {number(finite[0][1])} to {number(finite[-1][1])}"
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=label)
    return tag("figure", tag("figcaption", tag("span", title), last), svg, class_="chart")


class Frame:
    """Converts data to picture coordinates."""

    def __init__(self, left: float, right: float, low: float, high: float) -> None:
        self.left, self.right, self.low, self.high = left, right, low, high

    def x(self, step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (step - self.left) / max(self.right - self.left, 1e-9)

    def y(self, value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (self.high - value) / (self.high - self.low)


def value_range(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest value, apart also where all are equal."""
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - abs(low) * 0.1 - 1e-6, high + abs(high) * 0.1 + 1e-6)


def round_ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers that enclose low and high."""
    raw = (high - low) / 4
    unit = 10.0 ** floor(log10(raw))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= raw)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [float(f"{step * index:.12g}") for index in range(first, last + 1)]


def grid(frame: Frame, ticks: Sequence[float], unit: str = "step") -> list[Html]:
    """Lines at the ticks, with their values, and the ends of what runs from left to right."""
    parts = []
    for value in ticks:
        y = f"{frame.y(value):.1f}"
        parts.append(tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        parts.append(tag("text", f"{value:g}", x=LEFT - 6, y=y, dy="0.32em", text_anchor="end"))
    ends = [(frame.left, "start")] if frame.right == frame.left else [(frame.left, "start"), (frame.right, "end")]
    parts += [tag("text", number(step), x=f"{frame.x(step):.1f}", y=HEIGHT - 6, text_anchor=at) for step, at in ends]
    return [*parts, tag("text", unit, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 6, text_anchor="middle")]


def _mark(frame: Frame, step: float) -> Html:
    x = f"{frame.x(step):.1f}"
    return tag(
        "line", tag("title", f"resumed at {number(step)}"), x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="mark"
    )


def _level(frame: Frame, name: str, value: float) -> list[Html]:
    y = f"{frame.y(value):.1f}"
    line = tag("line", tag("title", f"{name} = {number(value)}"), x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="level")
    return [line, tag("text", name, x=WIDTH - RIGHT, y=y, dy="-0.35em", text_anchor="end")]


def _curves(frame: Frame, points: Sequence[Point]) -> list[Html]:
    if len(points) < SMOOTHING_POINTS:
        return [tag("path", d=path(frame, points), class_="curve")]
    return [
        tag("path", d=path(frame, points), class_="raw"),
        tag("path", d=path(frame, _smoothed(points)), class_="curve"),
    ]


def path(frame: Frame, points: Sequence[Point]) -> str:
    """The line through points, for a `d` of SVG; one that is not finite leaves a gap."""
    commands, command = [], "M"
    for step, value in points:
        if not isfinite(value):
            command = "M"
            continue
        commands.append(f"{command}{frame.x(step):.1f} {frame.y(value):.1f}")
        command = "L"
    return "".join(commands) + ("h0.01" if len(commands) == 1 else "")  # a single point still shows


def thinned(points: Sequence[Point]) -> list[Point]:
    """Means over equal bins when there are more points than the picture can show."""
    if len(points) <= MOST_POINTS:
        return list(points)
    bins = np.array_split(np.array(points, dtype=float), MOST_POINTS)
    return [(float(part[:, 0].mean()), float(part[:, 1].mean())) for part in bins]


def _smoothed(points: Sequence[Point]) -> list[Point]:
    """Running mean over up to a twentieth of the points on each side; both ends, with too few points, are left out."""
    values, count = np.array([value for _, value in points]), len(points)
    most = max(count // 20, 1)
    smoothed = []
    for i, (step, _) in enumerate(points):
        reach = min(most, i, count - 1 - i)
        near = values[i - reach : i + reach + 1]
        near = near[np.isfinite(near)]
        if 3 * reach >= most:
            smoothed.append((step, float(near.mean()) if len(near) else float("nan")))
    return smoothed


def charts(
    metrics: Sequence[dict],
    names: Sequence[str],
    marks: Sequence[float] = (),
    levels: Mapping[str, Level] = MappingProxyType({}),
) -> Html:
    """One chart for each metric, side by side where there is room; `levels` has the horizontal lines of some."""
    curves = {name: [(line["step"], line[name]) for line in metrics if name in line] for name in names}
    shown = (line_chart(name, curve, marks, [levels[name]] if name in levels else []) for name, curve in curves.items())
    return tag("div", joined(shown), class_="charts")
