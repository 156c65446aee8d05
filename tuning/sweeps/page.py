"""The page of a sweep: its result in words, a table of settings and all pictures, in one file without scripts."""

from collections.abc import Sequence

from tips_ray.report.html import Html, data_uri, joined, tag
from tips_ray.report.page import document
from tuning.sweeps.pictures import Picture
from tuning.sweeps.summary import Summary

CSS = """
main { max-width: 1240px; } ul { margin: 8px 0 0; padding-left: 1.2em; }
.shown { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(480px, 100%), 1fr)); gap: 18px 22px; }
"""


def page(summary: Summary, drawn: Sequence[Picture]) -> str:
    """The whole page.

    Args:
        summary: of the sweep.
        drawn: its pictures.
    """
    title, sentences = f"Sweep {summary.config.name}", list(summary.sentences())
    best = next((one for one in sentences if one.startswith("best: ")), "no setting has a score yet")
    parts = [
        tag("header", tag("h1", title), tag("p", best, class_="headline")),
        tag("section", tag("h2", "Result"), tag("ul", *(tag("li", one) for one in sentences if one != best))),
        tag("section", tag("h2", "Settings, the best first"), tag("div", _table(summary), class_="scroll")),
        tag("section", tag("h2", "Pictures"), tag("div", joined(map(_shown, drawn)), class_="shown")),
    ]
    return document(title, parts, CSS)


def _table(summary: Summary) -> Html:
    heads = tag("tr", joined(tag("th", head) for head in summary.heads()))
    rows = joined(tag("tr", joined(tag("td", cell) for cell in row)) for row in summary.rows())
    return tag("table", tag("thead", heads), tag("tbody", rows))


def _shown(drawn: Picture) -> Html:
    name, png = drawn
    return Html(tag("img", src=data_uri(png, "png"), alt=name.removesuffix(".png")).removesuffix("</img>"))
