"""Each part of a report as HTML; a part without data is empty."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from tips_ray.report.charts import charts
from tips_ray.report.content import ImageQuery, PatchFeatures, ProbeScore, Report, TextQuery
from tips_ray.report.html import Html, joined, number, picture, pixels, tag
from tips_ray.report.pca import pca_rgb

MOST_EVENTS, MOST_REJECTS = 200, 20
NOTHING = Html("")
WORDS = {"early": "too early"}
CLASSES = {"ill": "worse", "watch": "watch", "good": "better"}
"""Words for levels that are not words, and CSS classes of levels."""


def header(report: Report) -> Html:
    headline = tag("p", report.headline, class_="headline") if report.headline else NOTHING
    return tag("header", tag("h1", f"{report.name} · {report.created}".strip(" ·")), headline, tiles(report.key_scores))


def tiles(values: Mapping[str, Any], unit: str = "") -> Html:
    if not values:
        return NOTHING
    each = (
        tag("div", tag("b", number(value), unit), tag("span", name), class_="tile") for name, value in values.items()
    )
    return tag("div", joined(each), class_="tiles")


def what_was_run(report: Report) -> Html:
    parts = {"Run": report.run, "Machine": report.machine, "Versions": report.versions}
    lists = [tag("div", tag("h3", name), _facts(facts)) for name, facts in parts.items() if facts]
    return _section("What was run", "", tag("div", *lists, class_="facts")) if lists else NOTHING


def throughput(report: Report) -> Html:
    if not report.images_per_second:
        return NOTHING
    return _section("Throughput", "Images per second, by stage.", tiles(report.images_per_second, unit="/s"))


def curves(report: Report) -> Html:
    """Charts of the losses; those of all other metrics are folded."""
    names = dict.fromkeys(name for line in report.metrics for name in line if name not in ("step", "time"))
    losses = sorted((name for name in names if name.startswith("loss/")), key=lambda name: (name != "loss/total", name))
    others = sorted(name for name in names if not name.startswith("loss/"))
    if not names:
        return NOTHING
    lines = [dict(line) for line in report.metrics]
    marks = [event["step"] for event in report.events if event.get("kind") == "resume" and event.get("step")]
    hint = "Thin: measured. Bold: running mean." + (" Dashed upright: the run was resumed." if marks else "")
    hint += " Dashed level: the loss when nothing is learned." if report.trivial else ""
    folded = tag("details", tag("summary", f"{len(others)} other metrics"), charts(lines, others, marks))
    return _section("Loss curves", hint, charts(lines, losses, marks, report.trivial), folded if others else NOTHING)


def loss_health(report: Report) -> Html:
    """What was found about each loss, with what to try where it is not well."""
    if not report.findings:
        return NOTHING
    rows = []
    for finding in report.findings:
        level = tag("td", tag("span", WORDS.get(finding.level, finding.level), class_=CLASSES.get(finding.level)))
        cure = tag("p", tag("b", "Try: "), finding.cure, class_="hint") if finding.cure else NOTHING
        rows.append(tag("tr", level, tag("td", finding.about), tag("td", finding.seen, cure)))
    hint = (
        "Each loss beside the value that it has when nothing is learned: ln N for guessing among N pairs, ln K for "
        "calling all K prototypes equally likely. Directions are of the last third, by a Mann-Kendall test at 1 %."
    )
    return _section("Is the loss healthy?", hint, _scrolled(tag("table", *rows)))


def evaluations(report: Report) -> Html:
    """Charts of the scores of evaluated checkpoints: those that the run compares, else the first of each task."""
    if not report.evaluations:
        return NOTHING
    names = dict.fromkeys(name for one in report.evaluations for name in one.scores)
    told = [event["scores"] for event in report.events if event.get("kind") == "evaluation"]
    of_tasks = {name.partition("/")[0]: name for name in reversed(names)}
    shown = list(dict.fromkeys([*(told[-1] if told else ()), *reversed(of_tasks.values())]))
    lines = [{"step": one.step, **_finite(one.scores)} for one in report.evaluations]
    others = [name for name in names if name not in shown]
    folded = tag("details", tag("summary", f"{len(others)} other scores"), charts(lines, others))
    hint = "Scores of checkpoints on the data of evaluation.suite."
    faults = [tag("p", f"Step {one.step}: {one.failure}") for one in report.evaluations[-3:] if one.failure]
    return _section("Evaluated checkpoints", hint, *faults, charts(lines, shown), folded if others else NOTHING)


def _finite(scores: Mapping[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in scores.items() if value is not None}


def gallery(report: Report, side_px: int) -> Html:
    cards = []
    for item in report.gallery:
        texts = {"web caption": item.web_caption, "synthetic caption": item.synthetic_caption}
        words = [tag("p", _label(name), text) for name, text in texts.items() if text]
        cards.append(tag("figure", picture(item.image, side_px, item.web_caption), *words))
    hint = "Images with the text they came with and the text that was made for them."
    return _section("Captions", hint, tag("div", *cards, class_="gallery")) if cards else NOTHING


def feature_maps(report: Report, side_px: int) -> Html:
    features = report.features
    if features is None or not len(features.images):
        return NOTHING
    maps = _colours(features)
    cards = []
    for index, image in enumerate(features.images):
        cells = [_cell(picture(image, side_px), "image")]
        cells += [_cell(pixels(colours[index], f"{name} features"), name) for name, colours in maps.items()]
        cards.append(tag("div", *cells, class_="map"))
    hint = (
        "The first three principal components of the patch features, over all images shown, as red, green and blue: "
        "equal colour means equal feature."
    )
    return _section("What the patches know", hint, tag("div", *cards, class_="maps"))


def retrieval(report: Report, side_px: int) -> Html:
    rows = [_text_query(query, side_px) for query in report.text_queries]
    texts = [tag("h3", "Caption to images"), *rows] if rows else []
    rows = [_image_query(query, side_px) for query in report.image_queries]
    images = [tag("h3", "Image to captions"), *rows] if rows else []
    hint = "Nearest first; the right answer is marked green."
    return _section("Retrieval", hint, *texts, *images) if texts or images else NOTHING


def probes(report: Report) -> Html:
    if not report.probes:
        return NOTHING
    names = ("measure", "random weights", "trained", "change")
    head = tag("tr", *(tag("th", name, class_=None if name == "measure" else "number") for name in names))
    table = tag("table", head, *map(_probe_row, report.probes))
    return _section("Before and after", "The same measure on random and on trained weights.", _scrolled(table))


def tasks(report: Report, side_px: int) -> Html:
    """Pictures of tasks, shown larger because each has several panels in a row."""
    pictures = [
        tag("figure", tag("figcaption", title), picture(image, 3 * side_px, title))
        for title, image in report.task_pictures.items()
    ]
    return _section("Tasks on frozen features", "", tag("div", *pictures, class_="tasks")) if pictures else NOTHING


def events(report: Report) -> Html:
    if not report.events:
        return NOTHING
    shown = report.events[-MOST_EVENTS:]
    rows = [tag("tr", *(tag("td", cell) for cell in _event_cells(event))) for event in shown]
    head = tag("tr", *(tag("th", name) for name in ("time (UTC)", "event", "step", "")))
    hint = f"The last {MOST_EVENTS} of {len(report.events)}." if len(report.events) > MOST_EVENTS else ""
    return _section("Events", hint, _scrolled(tag("table", head, *rows)))


def rejects(report: Report) -> Html:
    if not report.rejects:
        return NOTHING
    counts = Counter(str(row.get("reason", "")) for row in report.rejects).most_common()
    counted = [tag("tr", tag("td", reason), tag("td", number(count), class_="number")) for reason, count in counts]
    head = tag("tr", tag("th", "reason"), tag("th", "rows", class_="number"))
    names = ("step", "sample_id", "key", "reason")
    first = [tag("tr", *(tag("td", row.get(name, "")) for name in names)) for row in report.rejects[:MOST_REJECTS]]
    listed = tag("table", tag("tr", *(tag("th", name) for name in names)), *first)
    folded = tag("details", tag("summary", f"The first {len(first)}"), _scrolled(listed))
    hint = "Rows that could not be used kept their place and had no weight."
    return _section(f"{number(len(report.rejects))} bad rows", hint, _scrolled(tag("table", head, *counted)), folded)


def next_commands(report: Report) -> Html:
    blocks = [tag("div", tag("span", what), tag("pre", command)) for command, what in report.next_commands.items()]
    return (
        _section("Next", "", *(tag("div", block, style="margin-top:10px") for block in blocks)) if blocks else NOTHING
    )


def full_config(report: Report) -> Html:
    if not report.config:
        return NOTHING
    return tag("details", tag("summary", "The whole config"), tag("pre", report.config), class_="card")


def _section(title: str, hint: str, *parts: Html) -> Html:
    return tag("section", tag("h2", title), tag("p", hint, class_="hint") if hint else NOTHING, *parts)


def _facts(facts: Mapping[str, Any]) -> Html:
    return tag("dl", joined(joined((tag("dt", name), tag("dd", number(value)))) for name, value in facts.items()))


def _label(text: str) -> Html:
    return tag("span", text, class_="label")


def _cell(image: Html, name: str) -> Html:
    return tag("div", image, _label(name))


def _scrolled(table: Html) -> Html:
    return tag("div", table, class_="scroll")


def _colours(features: PatchFeatures) -> dict[str, np.ndarray]:
    """Colours of the patches; one PCA for student and teacher if their features have the same shape."""
    given = {"student": features.student_BHWD, "teacher": features.teacher_BHWD}
    arrays = {name: array for name, array in given.items() if array is not None}
    if len({array.shape[1:] for array in arrays.values()}) != 1:
        return {name: pca_rgb(array) for name, array in arrays.items()}
    colours = pca_rgb(np.concatenate(list(arrays.values())))
    return dict(zip(arrays, np.split(colours, len(arrays)), strict=True))


def _text_query(query: TextQuery, side_px: int) -> Html:
    found = zip(query.images, query.is_hit, strict=True)
    images = [picture(image, side_px // 2, class_="hit" if is_hit else None) for image, is_hit in found]
    return tag("div", tag("blockquote", f"“{query.caption}”"), tag("div", *images, class_="row"), class_="query")


def _image_query(query: ImageQuery, side_px: int) -> Html:
    found = zip(query.captions, query.is_hit, strict=True)
    items: Iterable[Html] = [tag("li", caption, class_="right" if is_hit else None) for caption, is_hit in found]
    return tag("div", picture(query.image, side_px), tag("ol", *items), class_="query")


def _probe_row(probe: ProbeScore) -> Html:
    cells: Sequence[Html] = [tag("td", "–", class_="number"), tag("td", number(probe.after), class_="number")]
    change = tag("td", "", class_="number")
    if probe.before is not None:
        gain = probe.after - probe.before
        better = gain == 0 or (gain > 0) == probe.higher_is_better
        mark = f"{'+' if gain > 0 else '−' if gain < 0 else ''}{number(abs(gain))}"
        change = tag("td", tag("span", mark, class_="better" if better else "worse"), class_="number")
        cells = [tag("td", number(probe.before), class_="number"), cells[1]]
    name = probe.name if probe.higher_is_better else f"{probe.name} (lower is better)"
    return tag("tr", tag("td", name), *cells, change)


def _event_cells(event: Mapping[str, Any]) -> tuple[str, str, str, str]:
    known = ("time", "kind", "step")
    details = ", ".join(f"{key} {_detail(value)}" for key, value in event.items() if key not in known)
    step = event.get("step")
    time = str(event.get("time", ""))[:19].replace("T", " ")
    return time, str(event.get("kind", "")), "" if step is None else number(step), details


def _detail(value: Any) -> str:
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_detail(part)}" for key, part in value.items())
    return number(value)
