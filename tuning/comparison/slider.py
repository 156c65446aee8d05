"""Pictures of runs side by side, with a step to choose, as HTML without scripts."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tips_ray.report.html import Html, joined, picture_uri, pixels, tag
from tuning.comparison.run import ComparedRun

THUMBNAIL_PX = 96
MAPS = 6
"""Images whose patch features are shown."""
QUERIES, FOUND = 3, 4
"""Queries, and images that each finds."""
CSS = """
.pictures > input { position: absolute; opacity: 0; } .pictures > label { display: inline-block; padding: 4px 12px;
  border: 1px solid var(--line); cursor: pointer; font-size: .88rem; margin: 0 -1px 8px 0; }
.pictures > input:checked + label { background: var(--accent); color: var(--card); }
.pictures > input:focus-visible + label { outline: 2px solid var(--text); }
.pictures > div { display: none; }
.pictures td { vertical-align: top; white-space: nowrap; }
.pictures td img { display: inline-block; width: 72px; height: 72px;
  margin: 0 3px 3px 0; }
.pictures .image { display: inline-block; width: 72px; height: 72px; margin: 0 3px 3px 0; border-radius: 8px;
  background: center / cover; }
.pictures .right { outline: 3px solid var(--good); outline-offset: -3px; }
.pictures td.query { max-width: 220px; white-space: normal; font-size: .8rem; }
"""


class Pool(NamedTuple):
    """The images, and what is looked for among them."""

    images: list[np.ndarray]
    """uint8 [height, width, 3]."""
    captions: list[str]
    """One for each image, or none: the images themselves are then the queries."""

    @property
    def maps(self) -> int:
        """The patch features of so many first images are shown."""
        return min(MAPS, len(self.images))

    @property
    def queries(self) -> int:
        """The first images, or their captions, are the queries."""
        return min(QUERIES, len(self.images) - 1)


class Look(NamedTuple):
    """A run at one of its checkpoints."""

    step: int
    maps: list[np.ndarray]
    """Patch features as colours, uint8 [H, W, 3], of the first images."""
    found: list[list[int]]
    """For each query the numbers of the images that it finds, the nearest first."""


class Looks(NamedTuple):
    """The same images in the eyes of several runs."""

    pool: Pool
    of_runs: list[tuple[ComparedRun, list[Look]]]
    """Each run's checkpoints, oldest first."""
    left_out: list[str]
    """Sentences about runs that are not shown."""
    labels: Mapping[str, str] = {}
    """URI of a run -> its setting."""


def pictures(looks: Looks) -> Html:
    """A row of steps and, for the chosen one, a table of all runs."""
    steps = sorted({look.step for _, of_run in looks.of_runs for look in of_run})
    last = len(steps) - 1
    bar = [_choice(number, step, number == last) for number, step in enumerate(steps)]
    frames = [tag("div", _table(looks, step), class_=f"at-{number} scroll") for number, step in enumerate(steps)]
    return joined([_rules(looks, len(steps)), tag("div", *bar, *frames, class_="pictures")])


def _choice(number: int, step: int, is_chosen: bool) -> Html:
    checked = True if is_chosen else None
    button = tag("input", type="radio", name="step", id=f"at-{number}", checked=checked)
    return joined([Html(button.removesuffix("</input>")), tag("label", f"step {step:,}", for_=f"at-{number}")])


def _table(looks: Looks, step: int) -> Html:
    """Rows of images and queries; each run is shown at its newest checkpoint up to the step."""
    shown = [(run, _newest(of_run, step)) for run, of_run in looks.of_runs]
    head = tag("tr", tag("th", ""), *(tag("th", _title(looks, run, look)) for run, look in shown))
    maps = [
        tag("tr", tag("td", _image(row)), *(tag("td", pixels(look.maps[row]) if look else "") for _, look in shown))
        for row in range(looks.pool.maps)
    ]
    queries = [
        tag("tr", _query(looks, row), *(tag("td", *_found(looks, look, row)) for _, look in shown))
        for row in range(looks.pool.queries)
    ]
    return tag("table", head, *maps, *queries)


def _newest(of_run: Sequence[Look], step: int) -> Look | None:
    return next((look for look in reversed(of_run) if look.step <= step), None)


def _title(looks: Looks, run: ComparedRun, look: Look | None) -> str:
    seed = "" if run.seed is None else f", seed {run.seed}"
    return f"{looks.labels.get(run.uri, run.name)}{seed}: " + (f"step {look.step:,}" if look else "no checkpoint yet")


def _query(looks: Looks, row: int) -> Html:
    captions = looks.pool.captions
    return tag("td", captions[row] if captions else joined([_image(row), "→"]), class_="query")


def _found(looks: Looks, look: Look | None, row: int) -> list[Html]:
    """The images that a query finds; the one that a caption is of has a frame."""
    is_caption = bool(looks.pool.captions)
    return [_image(number, is_caption and number == row) for number in (look.found[row][:FOUND] if look else [])]


def _image(number: int, is_right: bool = False) -> Html:
    return tag("i", class_=f"image of-{number}{' right' if is_right else ''}")


def _rules(looks: Looks, steps: int) -> Html:
    """CSS: which step is shown, and every image that is shown, once in the page however often it is found."""
    found = {number for _, of_run in looks.of_runs for look in of_run for row in look.found for number in row[:FOUND]}
    shown = sorted(found | set(range(looks.pool.maps)))
    sources = {number: picture_uri(looks.pool.images[number], THUMBNAIL_PX) for number in shown}
    images = (f".of-{number} {{ background-image: url({source}); }}" for number, source in sources.items())
    choices = (f"#at-{number}:checked ~ .at-{number} {{ display: block; }}" for number in range(steps))
    return tag("style", Html("\n".join([*choices, *images])))
