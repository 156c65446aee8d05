"""Pictures of runs side by side, with a step to choose, as HTML without scripts."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tips_ray.report.html import Html, joined, picture, pixels, tag
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
.pictures td { vertical-align: top; } .pictures td img { display: inline-block; width: 72px; height: 72px;
  margin: 0 3px 3px 0; }
.pictures img.right { outline: 3px solid var(--good); outline-offset: -3px; }
.pictures td.query { max-width: 220px; font-size: .8rem; }
"""


class Pool(NamedTuple):
    """The images, and what is looked for among them."""

    images: list[np.ndarray]
    """uint8 [height, width, 3]."""
    captions: list[str]
    """One for each image, or none: the images themselves are then the queries."""

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


def pictures(looks: Looks) -> Html:
    """A row of steps and, for the chosen one, a table of all runs."""
    steps = sorted({look.step for _, of_run in looks.of_runs for look in of_run})
    last = len(steps) - 1
    bar = [_choice(number, step, number == last) for number, step in enumerate(steps)]
    rules = "".join(f"#at-{number}:checked ~ .at-{number} {{ display: block; }}" for number in range(len(steps)))
    frames = [tag("div", _table(looks, step), class_=f"at-{number} scroll") for number, step in enumerate(steps)]
    return joined([tag("style", Html(rules)), tag("div", *bar, *frames, class_="pictures")])


def _choice(number: int, step: int, is_chosen: bool) -> Html:
    checked = True if is_chosen else None
    button = tag("input", type="radio", name="step", id=f"at-{number}", checked=checked)
    return joined([Html(button.removesuffix("</input>")), tag("label", f"step {step:,}", for_=f"at-{number}")])


def _table(looks: Looks, step: int) -> Html:
    """Rows of images and queries; each run is shown at its newest checkpoint up to the step."""
    shown = [(run, _newest(of_run, step)) for run, of_run in looks.of_runs]
    head = tag("tr", tag("th", ""), *(tag("th", _title(run, look)) for run, look in shown))
    small = [_thumbnail(image) for image in looks.pool.images]
    maps = [
        tag("tr", tag("td", small[row]), *(tag("td", pixels(look.maps[row]) if look else "") for _, look in shown))
        for row in range(min(MAPS, len(small)))
    ]
    queries = [
        tag("tr", _query(looks, row, small), *(tag("td", *_found(looks, look, row)) for _, look in shown))
        for row in range(looks.pool.queries)
    ]
    return tag("table", head, *maps, *queries)


def _newest(of_run: Sequence[Look], step: int) -> Look | None:
    return next((look for look in reversed(of_run) if look.step <= step), None)


def _title(run: ComparedRun, look: Look | None) -> str:
    seed = "" if run.seed is None else f", seed {run.seed}"
    return f"{run.name}{seed}: " + (f"step {look.step:,}" if look else "no checkpoint yet")


def _query(looks: Looks, row: int, small: Sequence[Html]) -> Html:
    captions = looks.pool.captions
    return tag("td", captions[row] if captions else joined([small[row], "→"]), class_="query")


def _found(looks: Looks, look: Look | None, row: int) -> list[Html]:
    """The images that a query finds; the one that a caption is of has a frame."""
    numbers, images = look.found[row][:FOUND] if look else [], looks.pool.images
    is_caption = bool(looks.pool.captions)
    return [_thumbnail(images[number], "right" if is_caption and number == row else None) for number in numbers]


def _thumbnail(image: np.ndarray, class_: str | None = None) -> Html:
    return picture(image, THUMBNAIL_PX, class_=class_)
