"""Charts draw the measured values."""

import math
import re

import pytest

from tips_ray.report.charts import HEIGHT, MOST_POINTS, TOP, charts, line_chart
from tips_ray.report.html import number


def _curve(svg: str) -> list[tuple[float, float]]:
    (path,) = re.findall(r'd="([^"]*)" class="curve"', svg)
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([\d.]+) ([\d.]+)", path)]


def test_a_line_keeps_its_proportions():
    points = _curve(line_chart("loss", [(0, 4.0), (5, 2.0), (10, 0.0)]))
    assert points[0][1] == TOP and points[2][1] > points[1][1] > points[0][1]
    assert points[1] == pytest.approx([(one + other) / 2 for one, other in zip(points[0], points[2], strict=True)])


def test_round_ticks_enclose_the_values():
    svg = line_chart("loss", [(0, 0.13), (10, 0.87)])
    assert re.findall(r'text-anchor="end">([\d.]+)<', svg)[:-1] == ["0", "0.2", "0.4", "0.6", "0.8", "1"]


def test_a_value_that_is_not_finite_leaves_a_gap():
    svg = line_chart("loss", [(0, 1.0), (1, 2.0), (2, math.nan), (3, 1.0), (4, 2.0)])
    assert svg.count("M") == 2 and "nan" not in svg


def test_a_single_or_constant_value_is_drawn():
    for points in ([(3, 1.0)], [(0, 1.0), (1, 1.0)], [(0, 0.0), (1, 0.0)]):
        assert all(0 < y < HEIGHT for _, y in _curve(line_chart("loss", points)))


def test_a_long_run_is_drawn_with_few_points_and_its_last_value():
    points = [(step, 1 + 1 / (1 + step)) for step in range(50_000)]
    svg = line_chart("loss", points)
    assert len(_curve(svg)) <= MOST_POINTS and len(svg) < 20_000
    assert '<span class="last">1</span>' in svg


def test_smoothing_does_not_bend_a_straight_line():
    points = _curve(line_chart("loss", [(step, 100.0 - step) for step in range(101)]))
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in zip(points, points[1:], strict=False)]
    assert max(slopes) - min(slopes) < 0.1  # coordinates have one decimal


def test_a_metric_that_some_lines_lack_is_drawn_over_the_others():
    svg = charts([{"step": 1, "a": 1.0}, {"step": 2}, {"step": 3, "a": 2.0}], ["a", "missing"])
    assert len(_curve(svg)) == 2 and "missing" not in svg


@pytest.mark.parametrize(
    ("value", "text"),
    [(12345.6, "12,346"), (7, "7"), (0.12345, "0.1235"), (0.0000123, "1.23e-05"), (0.5, "0.5"), (math.nan, "nan")],
)
def test_numbers_are_short(value, text):
    assert number(value) == text


def test_a_level_is_drawn_at_its_value_and_widens_the_picture():
    svg = line_chart("loss", [(0, 2.0), (10, 1.0)], levels=[("ln 55", 4.0)])
    assert re.findall(r'text-anchor="end">([\d.]+)<', svg)[:-1] == ["1", "2", "3", "4"]
    assert f'y1="{TOP:.1f}" y2="{TOP:.1f}" class="level"' in svg and ">ln 55<" in svg and "ln 55 = 4" in svg
