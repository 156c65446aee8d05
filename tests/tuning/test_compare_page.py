"""The page of a comparison: whole without a network, and its plots by hand."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tips_ray.report.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from tuning.comparison.charts import curves, differences, means
from tuning.comparison.compare import Comparison, compared
from tuning.comparison.page import write_page
from tuning.comparison.run import ComparedRun, Line
from tuning.comparison.setting import Metric
from tuning.comparison.slider import Look, Looks, Pool, pictures

LOSS = Metric("loss", "lower")


def _run(name: str, seed: int, alpha: str, *values: float) -> ComparedRun:
    """A run whose steps 0, 1, ... have these losses."""
    lines = [Line(step, step, 0, None, {"loss": value}) for step, value in enumerate(values)]
    return ComparedRun(f"/runs/{name}", name, seed, {"alpha": alpha}, f"batches of {seed}", ["loss"], lines, {})


@pytest.fixture
def found() -> Comparison:
    """Gains of 1 and 2 at step 2, the interval of which is 1.5 -+ 12.706 x .5; one run diverges."""
    runs = [_run("a", 0, "1", 10, 8, 6), _run("b", 1, "1", 10, 6, 4, 0)]
    runs += [_run("c", 0, "<2>", 10, 6, 5), _run("d", 1, "<2>", 10, 6, 2), _run("e", 2, "<2>", 10, float("nan"))]
    return compared(runs, [LOSS], left_out=["f has no loss"])


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.open: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href")]
        if tag != "meta":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_page_is_whole_and_needs_nothing_else(found, tmp_path):
    write_page(tmp_path / "page.html", found)
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(text)
    assert page.open == [] and page.links == [] and "script" not in page.tags and page.tags.count("svg") == 2
    assert "http" not in re.sub(r"http-equiv", "", text) and "<2>" not in text and "alpha=&lt;2&gt;" in text
    for words in (
        "At step 2, against alpha=1: 1 no claim.",
        "1.5 lower (-4.85 to 7.85), p 0.5, 2 pairs on the same batches",
        "a claim needs at least 4 more seeds of both",
        "1 of 3 runs of alpha=&lt;2&gt; had diverged by then: not in the numbers",
        "/runs/e, seed 2: loss diverged at step 1",
        "3.5 ± 2.1 (2 of 3 runs)",
        "f has no loss",
    ):
        assert words in text, words


def test_means_are_over_all_runs_that_have_not_diverged_and_as_far_as_all_have_come(found):
    """Losses 8 and 6, then 6 and 4, whose standard deviation is the root of 2; step 3 belongs to one run."""
    plain, other = found.settings
    assert [(one.amount, one.mean) for one in means(plain, LOSS)] == [(0, 10), (1, 7), (2, 5)]
    assert [one.spread for one in means(plain, LOSS)] == pytest.approx([0, 2**0.5, 2**0.5])
    assert [one.mean for one in means(other, LOSS)] == [10, 6, 3.5]


def test_curves_lie_where_their_values_are(found):
    """Steps 0 to 3 from left to right, losses 0 to 10 from bottom to top; the mean is 10, 7, 5."""
    svg = curves(found, LOSS)
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    points = [(LEFT + width * step / 3, TOP + height * (10 - value) / 10) for step, value in ((0, 10), (1, 7), (2, 5))]
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    assert f'd="M{path}" class="series c0"' in svg
    assert svg.count('class="series one c0"') == 2 and svg.count('class="series one c1"') == 3
    assert "/runs/e diverged after this" in svg and svg.count('class="end"') == 1


def test_differences_lie_where_their_values_are(found):
    """Ticks from -5 to 10 enclose the interval -4.85 to 7.85; the mean is 1.5, the pairs 1 and 2."""
    svg = differences(found, LOSS)
    x = [LEFT + (WIDTH - LEFT - RIGHT) * (value + 5) / 15 for value in (1.5, 1, 2)]
    assert re.findall(r'cx="([\d.]+)"[^>]* r="5"', svg) == [f"{x[0]:.1f}"]
    assert re.findall(r'cx="([\d.]+)"[^>]* r="2.5"', svg) == [f"{one:.1f}" for one in x[1:]]
    assert "/runs/c against /runs/a: 1<" in svg and "to the right: better" in svg


def _looks(found: Comparison, captions: list[str]) -> Looks:
    """Three images; `a` at steps 5 and 9, `c` at step 7."""
    images = [np.full((4, 4, 3), shade, np.uint8) for shade in (0, 100, 200)]
    first, other = (setting.runs[0] for setting in found.settings)
    looks = [Look(step, [np.full((2, 2, 3), step, np.uint8)] * 3, [[1, 2], [1, 2]]) for step in (5, 9, 7)]
    return Looks(Pool(images, captions), [(first, looks[:2]), (other, looks[2:])], ["d is in no picture: it is gone"])


def test_pictures_of_all_runs_lie_side_by_side_for_each_step(found, tmp_path):
    write_page(tmp_path / "page.html", found, _looks(found, ["<one>", "two", "three"]))
    text = (tmp_path / "page.html").read_text()
    page = _Page()
    page.feed(re.sub(r"<(input|img)[^>]*>", "", text))
    assert page.open == [] and "script" not in page.tags and "d is in no picture: it is gone" in text
    assert re.findall(r'<input type="radio"[^>]*?(checked)?><label for="at-(\d)">step (\d)', text) == [
        ("", "0", "5"), ("", "1", "7"), ("checked", "2", "9"),
    ]  # fmt: skip
    frames = re.split(r'<div class="at-\d scroll">', text)[1:]
    titles = [re.findall(r"<th>([ac], seed 0: [^<]*)</th>", frame) for frame in frames]
    assert titles == [
        ["a, seed 0: step 5", "c, seed 0: no checkpoint yet"],
        ["a, seed 0: step 5", "c, seed 0: step 7"],
        ["a, seed 0: step 9", "c, seed 0: step 7"],
    ]
    assert [frame.count('class="pixels"') for frame in frames] == [3, 6, 6], "maps of three images"
    assert [frame.count(' right"') for frame in frames] == [1, 2, 2], "the second caption finds its own image"
    assert "&lt;one&gt;" in frames[0] and "<one>" not in text


def test_without_captions_images_are_the_queries_and_nothing_is_called_right(found):
    html = pictures(_looks(found, []))
    assert html.count("→</td>") == 2 * 3 and ' right"' not in html
