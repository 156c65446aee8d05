"""Results of several encoders side by side, with what the test images cannot tell apart, and scores that moved.

Source of the noise: the standard errors of results.json, over the test images. Encoders are scored on the same images,
so that a difference is in truth known better than two separate errors say: what is called told apart here, is.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from math import sqrt
from typing import Any, NamedTuple

from tips_ray import storage
from tips_ray.evaluation.probe import without_rates
from tips_ray.evaluation.results import RESULTS, Record, number
from tips_ray.report.html import Html, tag
from tips_ray.report.page import document

CONFIDENCE = 1.96
"""Standard errors within which 95 of 100 differences of chance lie."""
LOWER_IS_BETTER = ("rmse_m", "rmse_degrees")
ROUNDING = 1e-6
"""Differences below it are no move, whatever the standard error."""
LEGEND = (
    "Bold: best. ≈: the test images do not tell it from the best (95 %, standard errors of both). "
    "†: other settings, data or images left out than the first column with this score, so that it is not compared."
)


class Entry(NamedTuple):
    """Results of a folder."""

    folder: str
    model: str
    weights: str
    tasks: dict[str, Record]


class Cell(NamedTuple):
    """A score of an encoder."""

    value: float
    error: float | None
    """Standard error over the test images; None in results of an earlier version."""
    is_best: bool = False
    is_close: bool = False
    """Whether the test images do not tell it from the best."""
    is_other: bool = False
    """Whether its settings or data are not those of the first column."""


class Row(NamedTuple):
    """A score of a task, for each encoder; None where it has none."""

    task: str
    score: str
    cells: list[Cell | None]


def read_results(folder: str) -> Entry:
    """The results in a folder of `tips-ray evaluate`.

    Raises:
        ValueError: the folder has no results.json, or it is damaged.
    """
    uri = storage.join(folder, RESULTS)
    if not storage.exists(uri):
        raise ValueError(f"{folder} has no {RESULTS}: give folders that tips-ray evaluate has written")
    try:
        content = json.loads(storage.read_text(uri))
        return Entry(folder, str(content["model"]), str(content["weights"]), dict(content["tasks"]))
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{uri} is damaged ({type(error).__name__}: {error}); evaluate again") from None


def rows_of(entries: Sequence[Entry]) -> list[Row]:
    """A row for each score of each task, in the order of the folders."""
    keys = {(task, score): None for entry in entries for task in entry.tasks for score in _scores(entry, task)}
    return [Row(task, score, _cells(entries, task, score)) for task, score in keys]


def moved_scores(entries: Sequence[Entry]) -> list[str]:
    """A sentence for each score that moved by more than its noise between two folders of the same model.

    Folders are of the same model if they have its name or its weights; they are taken in the given order. A score is
    compared only where task and data are the same.
    """
    return [sentence for pair in _same_model(entries) for sentence in _moves(*pair)]


def markdown(entries: Sequence[Entry]) -> str:
    """The table in Markdown, with its legend."""
    lines = [["task", "score", *_titles(entries)], ["---", "---", *["---:"] * len(entries)]]
    for row in rows_of(entries):
        lines.append([row.task, row.score, *(_text(cell, "**{}**") for cell in row.cells)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{LEGEND}\n"


def page(entries: Sequence[Entry], alarms: Sequence[str]) -> str:
    """The table as one HTML page without external resources."""
    heads = [tag("th", title) for title in ("task", "score", *_titles(entries))]
    body = [
        tag("tr", tag("td", row.task), tag("td", row.score), *(_html_cell(cell) for cell in row.cells))
        for row in rows_of(entries)
    ]
    told = [tag("p", tag("span", "moved", class_="worse"), f" {alarm}") for alarm in alarms]
    table = tag("div", tag("table", tag("tr", *heads), *body), class_="scroll")
    return document("Leaderboard", [tag("h1", "Leaderboard"), *told, tag("p", LEGEND, class_="hint"), table])


def _titles(entries: Sequence[Entry]) -> list[str]:
    """Names of the models; with the folder where two have one name."""
    names = [entry.model for entry in entries]
    return [f"{one.model} ({one.folder})" if names.count(one.model) > 1 else one.model for one in entries]


def _scores(entry: Entry, task: str) -> dict[str, float]:
    return without_rates(entry.tasks.get(task, {}).get("scores", {}))


def _cells(entries: Sequence[Entry], task: str, score: str) -> list[Cell | None]:
    found: list[Cell | None] = []
    first: Any = None
    for entry in entries:
        value = _scores(entry, task).get(score)
        if value is None:
            found.append(None)
            continue
        record = entry.tasks[task]
        settings = _settings(record)
        first = settings if first is None else first
        found.append(Cell(value, record.get("standard_errors", {}).get(score), is_other=not _agree(settings, first)))
    return _judged(found, score)


def _settings(record: Mapping[str, Any]) -> dict[str, Any]:
    """What makes scores of two encoders comparable; image size and place of the data may differ.

    Images that were left out are a difference: the scores are of other test images.
    """
    task, data = record["config"]["task"], record["config"]["data"]
    without = {"task": ("data", "protocol"), "data": ("folder",)}
    parts = {"task": task, "data": data}
    found: dict[str, Any] = {
        name: {key: part[key] for key in part.keys() - without[name]} for name, part in parts.items()
    }
    return found | {"left_out": sorted(record.get("left_out", {}).items())}


def _agree(one: Any, other: Any) -> bool:
    """Whether two trees are equal in all keys that both have: a later version may have added some."""
    if isinstance(one, dict) and isinstance(other, dict):
        return all(_agree(one[key], other[key]) for key in one.keys() & other.keys())
    return one == other


def _judged(cells: list[Cell | None], score: str) -> list[Cell | None]:
    compared = [cell for cell in cells if cell is not None and not cell.is_other]
    if len(compared) < 2:
        return cells
    sign = -1 if score.endswith(LOWER_IS_BETTER) else 1
    best = max(compared, key=lambda cell: sign * cell.value)
    return [
        cell
        if cell is None or cell.is_other
        else cell._replace(is_best=cell.value == best.value, is_close=cell.value != best.value and _close(cell, best))
        for cell in cells
    ]


def _close(one: Cell, other: Cell) -> bool:
    noise = CONFIDENCE * sqrt((one.error or 0) ** 2 + (other.error or 0) ** 2)
    return abs(one.value - other.value) <= noise


def _same_model(entries: Sequence[Entry]) -> Iterator[tuple[Entry, Entry]]:
    """Each folder with the last one before it of the same name or weights."""
    for place, entry in enumerate(entries):
        before = [one for one in entries[:place] if one.model == entry.model or one.weights == entry.weights]
        if before:
            yield before[-1], entry


def _moves(before: Entry, after: Entry) -> Iterator[str]:
    weights = "the same weights" if before.weights == after.weights else "other weights"
    for task in after.tasks:
        records = before.tasks.get(task, {}), after.tasks[task]
        if not all("scores" in record for record in records) or not _is_repeated(*records):
            continue
        errors = [record.get("standard_errors", {}) for record in records]
        earlier = _scores(before, task)
        for score, value in _scores(after, task).items():
            error = max(one.get(score, 0.0) for one in errors)
            if score in earlier and abs(value - earlier[score]) > max(CONFIDENCE * error, ROUNDING):
                yield (
                    f"{after.model}: {task} {score} moved from {earlier[score]:.4g} to {value:.4g}, and its standard "
                    f"error is {error:.2g} ({weights}; {before.folder}, {after.folder})"
                )


def _is_repeated(one: Record, other: Record) -> bool:
    """Whether two results are of the same task on the same data at the same image size."""
    same_size = one["config"].get("image_size_px") == other["config"].get("image_size_px")
    return same_size and _agree(_settings(one), _settings(other))


def _text(cell: Cell | None, bold: str) -> str:
    if cell is None:
        return ""
    text = number(cell.value, cell.error)
    return (bold.format(text) if cell.is_best else text) + " ≈" * cell.is_close + " †" * cell.is_other


def _html_cell(cell: Cell | None) -> Html:
    text = _text(cell, "{}")
    return tag("td", tag("b", text) if cell is not None and cell.is_best else text, class_="number")
