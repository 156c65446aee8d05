"""The page of a sweep: its result in words, a table of settings and all pictures, in one file without scripts."""

import base64
from collections.abc import Sequence

from tips_ray.report.html import Html, joined, tag
from tips_ray.report.page import document
from tuning.sweeps.pictures import Picture
from tuning.sweeps.summary import Summary

WIDE = "main{max-width:72rem} td,th{text-align:left;padding:.2rem .8rem .2rem 0} .shown img{max-width:100%}"


def page(summary: Summary, drawn: Sequence[Picture]) -> str:
    """The whole page.

    Args:
        summary: of the sweep.
        drawn: its pictures.
    """
    parts = [
        tag("h1", f"Sweep {summary.config.name}"),
        tag("ul", joined(tag("li", sentence) for sentence in summary.sentences())),
        tag("h2", "Settings, the best first"),
        tag("div", _table(summary), class_="scroll"),
        tag("h2", "Pictures"),
        tag("div", joined(map(_shown, drawn)), class_="shown"),
    ]
    return document(summary.config.name, parts, WIDE)


def _table(summary: Summary) -> Html:
    heads = tag("tr", joined(tag("th", head) for head in summary.heads()))
    rows = joined(tag("tr", joined(tag("td", cell) for cell in row)) for row in summary.rows())
    return tag("table", tag("thead", heads), tag("tbody", rows))


def _shown(drawn: Picture) -> Html:
    name, png = drawn
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return Html(tag("img", src=source, alt=name.removesuffix(".png")).removesuffix("</img>"))
