"""A comparison as one static HTML page without scripts or external resources."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tips_ray.report.html import Html, joined, number, tag
from tips_ray.report.page import document
from tuning.comparison import slider
from tuning.comparison.charts import CSS, curves, differences, legend
from tuning.comparison.compare import Comparison
from tuning.comparison.images import Looks
from tuning.comparison.run import ComparedRun
from tuning.comparison.setting import Metric, Setting
from tuning.comparison.text import COLUMNS, headline, mean, mean_at, named, reasons, seeds, troubles
from tuning.comparison.verdicts import Verdict
from tuning.words import counted

NOTHING = Html("")
NUMBER = "number"


def write_page(path: Path, found: Comparison, looks: Looks | None = None) -> None:
    """Write tables, verdicts and plots; with `looks` also what the runs see in the same images."""
    runs = sum(len(setting.runs) for setting in found.settings)
    title = f"{counted(len(found.settings), 'setting')}, {counted(runs, 'run')}"
    parts = [
        tag("header", tag("h1", f"Comparison of {title}"), tag("p", _summary(found), class_="headline")),
        _verdicts(found),
        _settings(found),
        _curves(found),
        _differences(found),
        _pictures(looks),
        _runs(found),
        _left_out(found),
    ]
    path.write_text(document(f"Comparison of {title}", parts, CSS + slider.CSS), encoding="utf-8")


def _summary(found: Comparison) -> str:
    """Such as `At step 200: 1 better, 3 no claim.`"""
    if not found.verdicts:
        return "There is one setting, and nothing to compare it with."
    counts = Counter(verdict.claim for verdict in found.verdicts)
    told = ", ".join(f"{counts[claim]} {claim}" for claim in ("better", "worse", "no claim") if counts[claim])
    return f"At {found.place}, against {found.baseline.label}: {told}."


def _verdicts(found: Comparison) -> Html:
    if not found.verdicts:
        return NOTHING
    rows = [_verdict_row(found, verdict) for verdict in found.verdicts]
    hint = f"Against {found.baseline.label}, at {found.place}. A claim needs six pairs of runs on the same batches."
    return _section("Verdicts", hint, _table(["setting", "metric", "verdict", "why"], rows))


def _verdict_row(found: Comparison, verdict: Verdict) -> list[Html]:
    kind = verdict.claim if verdict.claim != "no claim" else None
    claim = tag("span", verdict.claim, class_=kind, title=headline(found, verdict))
    why = joined(tag("div", sentence) for sentence in reasons(found, verdict))
    return [
        tag("td", verdict.setting.label),
        tag("td", verdict.metric.name),
        tag("td", claim, class_="claim"),
        tag("td", why),
    ]


def _settings(found: Comparison) -> Html:
    """Params that differ, and means over seeds."""
    heads = ["", *found.keys, "runs", "seeds", "metric", *_columns(found)]
    rows = [_setting_row(found, setting, metric) for setting in found.settings for metric in found.metrics]
    hint = "Runs that differ by their seed alone are one setting: mean ± standard deviation over its runs."
    if not found.keys:
        hint = f"{hint} These runs differ by nothing but their seeds."
    told = [tag("li", sentence) for setting in found.settings for sentence in troubles(found, setting)]
    return _section("Settings", hint, _table(heads, rows, len(_columns(found))), tag("ul", *told) if told else NOTHING)


def _columns(found: Comparison) -> list[str]:
    own = [f"at {found.place}" if column == "equal" else column for column in COLUMNS]
    return [*own, *(f"at {equal.place}" for equal in found.also)]


def _setting_row(found: Comparison, setting: Setting, metric: Metric) -> list[Html]:
    which = "baseline" if setting is found.baseline else ""
    texts = [which, *setting.params.values(), len(setting.runs), seeds(setting).removeprefix("seeds "), metric.name]
    numbers = [mean(found, setting, metric, column) for column in COLUMNS]
    numbers += [mean_at(setting, metric, equal) for equal in found.also]
    return [*(tag("td", text) for text in texts), *(tag("td", text, class_=NUMBER) for text in numbers)]


def _curves(found: Comparison) -> Html:
    plots = joined(curves(found, metric) for metric in found.metrics)
    hint = (
        "Bold: mean over the runs of a setting, as far as all of them have come. Shaded: their standard deviation. "
        f"Thin: each run. Dashed: {found.place}, where settings are compared. A red cross: the run diverged."
    )
    return _section("Metrics", hint, legend(found), tag("div", plots, class_="charts"))


def _differences(found: Comparison) -> Html:
    plots = joined(differences(found, metric) for metric in found.metrics)
    if not plots:
        return NOTHING
    hint = f"Against {found.baseline.label}. Large dot and line: mean and 95 % interval. Small dots: pairs of runs."
    return _section("Differences", hint, legend(found), tag("div", plots, class_="charts"))


def _pictures(looks: Looks | None) -> Html:
    if looks is None:
        return NOTHING
    what = "images, and their nearest"
    if looks.pool.captions:
        what = "captions of the first images, and what they find (a caption's own image has a frame)"
    hint = (
        "Patch features by their three main directions as colours; equal colours of a run are equal features, at all "
        f"steps. Below: {what} among {len(looks.pool.images)} images, the nearest first. Choose a step; arrow keys "
        "move it."
    )
    told = [tag("li", sentence) for sentence in looks.left_out]
    return _section("Pictures", hint, slider.pictures(looks), tag("ul", *told) if told else NOTHING)


def _runs(found: Comparison) -> Html:
    heads = ["run", "setting", "seed", "batch fingerprint", "metric", *_columns(found), "diverged at step"]
    places = [(setting, run, metric) for setting in found.settings for run in setting.runs for metric in found.metrics]
    rows = [_run_row(found, *place) for place in places]
    runs = counted(sum(len(setting.runs) for setting in found.settings), "run")
    table = tag("details", tag("summary", runs), _table(heads, rows, len(_columns(found)) + 1))
    return _section("Runs", "Equal batch fingerprints: the runs saw the same batches.", table)


def _run_row(found: Comparison, setting: Setting, run: ComparedRun, metric: Metric) -> list[Html]:
    *values, point = found.values(run, metric)
    seed = "unknown" if run.seed is None else run.seed
    texts = [run.label, named(found, setting), seed, run.batches[:12], metric.name]
    numbers = [
        *map(number, [*values, *(equal.value(run, metric) for equal in found.also)]),
        point.step if point else "",
    ]
    return [*(tag("td", text) for text in texts), *(tag("td", text, class_=NUMBER) for text in numbers)]


def _left_out(found: Comparison) -> Html:
    items = [tag("li", sentence) for sentence in found.left_out]
    return _section("Left out", "Runs that are not compared.", tag("ul", *items)) if items else NOTHING


def _table(heads: Sequence[str], rows: Iterable[Sequence[Html]], numbers: int = 0) -> Html:
    """A table whose last columns are numbers."""
    texts = len(heads) - numbers
    head = tag("tr", *(tag("th", name, class_=NUMBER if place >= texts else None) for place, name in enumerate(heads)))
    return tag("div", tag("table", head, *(tag("tr", *cells) for cells in rows)), class_="scroll")


def _section(title: str, hint: str, *parts: Any) -> Html:
    return tag("section", tag("h2", title), tag("p", hint, class_="hint"), *parts)
