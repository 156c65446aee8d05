"""The report of a curation as one HTML page: rows by stage, histograms with thresholds, examples of both sides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tips_ray.config.curation import CurationConfig
from tips_ray.curation.stages import KEPT, Funnel
from tips_ray.data.columns import SourceRow
from tips_ray.data.decode import BadImage, decode
from tips_ray.data.index import Index
from tips_ray.report.html import Html, joined, number, picture, tag
from tips_ray.report.page import document

BINS, WIDTH, HEIGHT, FOOT = 48, 360, 150, 22
SHOWN = 6
"""Examples of each stage."""
SIDE_PX = 160
CSS = """
.bars rect { fill: var(--accent); } .bars rect.out { fill: var(--raw); }
td.count { text-align: right; font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class Histogram:
    """Values that a stage judged, with the smallest and the largest that it keeps."""

    name: str
    value_M: NDArray[np.floating]
    low: float | None = None
    high: float | None = None


def page(
    config: CurationConfig,
    index: Index,
    signals: pa.Table,
    funnel: Funnel,
    facts: Mapping[str, Any],
    seconds: Mapping[str, float],
) -> str:
    """The whole page.

    Args:
        config: thresholds.
        index: of the raw data, of which examples are read.
        signals: of all rows.
        funnel: after all stages.
        facts: to tell at the top, such as where the selection is.
        seconds: wall time by part.
    """
    kept = int(funnel.is_kept_N.sum())
    headline = f"{kept:,} of {signals.num_rows:,} rows are kept ({kept / max(signals.num_rows, 1):.1%})"
    rows = [tag("tr", tag("th", name), tag("td", value)) for name, value in facts.items()]
    parts = [
        tag("header", tag("h1", config.source.uri), tag("p", headline, class_="headline")),
        tag("section", tag("h2", "What was made"), tag("table", joined(rows))),
        tag("section", tag("h2", "Rows by stage"), _hint("Stages run in this order."), _funnel(funnel)),
        tag(
            "section",
            tag("h2", "What was judged"),
            _hint(JUDGED),
            tag("div", *_charts(config, signals, funnel), class_="charts"),
        ),
        tag("section", tag("h2", "Examples"), _hint(EXAMPLES), *_examples(config, index, funnel)),
        tag(
            "section",
            tag("h2", "Cost"),
            _hint("Wall time of this run; what was made before costs nothing."),
            _cost(seconds, signals.num_rows),
        ),
    ]
    return document(f"Curation of {config.source.uri}", parts, CSS)


JUDGED = "Dashed: the threshold. Pale bars are dropped. A row that an earlier stage dropped is not counted."
EXAMPLES = "Rows from one end of what a stage judged to the other, where it has a number; else spread over the data."


def _hint(text: str) -> Html:
    return tag("p", text, class_="hint")


def _funnel(funnel: Funnel) -> Html:
    left, rows = len(funnel.reason_N), []
    for stage, count in list(funnel.counts().items())[1:]:
        left -= count
        cells = (f"{count:,}", f"{count / max(left + count, 1):.1%}", f"{left:,}")
        rows.append(tag("tr", tag("td", stage), *(tag("td", cell, class_="count") for cell in cells)))
    heads = tag("tr", *(tag("th", head) for head in ("stage", "dropped", "of the rows before it", "left")))
    return tag("table", heads, joined(rows))


def _cost(seconds: Mapping[str, float], rows: int) -> Html:
    lines = [
        tag(
            "tr",
            tag("td", name),
            *(tag("td", cell, class_="count") for cell in (f"{took:.1f} s", f"{rows / took:,.0f}/s")),
        )
        for name, took in seconds.items()
        if took > 0
    ]
    return tag("table", tag("tr", *(tag("th", head) for head in ("part", "time", "rows of the source"))), joined(lines))


def _charts(config: CurationConfig, signals: pa.Table, funnel: Funnel) -> list[Html]:
    return [_chart(one) for one in histograms(config, signals, funnel) if len(one.value_M)]


def histograms(config: CurationConfig, signals: pa.Table, funnel: Funnel) -> list[Histogram]:
    """What each stage judged, of the rows that came to it."""
    width_N, height_N = (signals[name].fill_null(0).to_numpy().astype(float) for name in ("width", "height"))
    is_read_N = width_N > 0
    shorter_N, longer_N = np.minimum(width_N, height_N)[is_read_N], np.maximum(width_N, height_N)[is_read_N]
    found = [Histogram("shorter side, px", shorter_N, config.images.min_side_px)]
    found += [Histogram("longer over shorter side", longer_N / shorter_N, None, config.images.max_aspect)]
    for name, bounds in config.fields.items():
        value_N = signals[f"field.{name}"].drop_null().to_numpy()
        found.append(Histogram(name, value_N, bounds.min, bounds.max))
    if config.language:
        found.append(Histogram("votes for English", signals["english_votes"].to_numpy(), config.language.needed))
    return found + [_judged(name, value_N, config) for name, value_N in funnel.values.items()]


def _judged(name: str, value_N: NDArray[np.float32], config: CurationConfig) -> Histogram:
    value_M = value_N[np.isfinite(value_N)]
    if name == "similarity" and config.similarity:
        return Histogram("cosine of image and caption", value_M, config.similarity.min)
    if name == "near a curated image" and config.near:
        return Histogram("cosine to the nearest curated image", value_M, config.near.min)
    return Histogram(f"cosine to the nearest image: {name}", value_M, None, config.sealed and config.sealed.similarity)


def _chart(one: Histogram) -> Html:
    low, high = np.quantile(one.value_M, (0.002, 0.998)).tolist()
    inside = [bound for bound in (one.low, one.high) if bound is not None]
    low, high = min([low, *inside]), max([high, *inside])
    high = high if high > low else low + 1
    count_B, edge_B = np.histogram(np.clip(one.value_M, low, high), BINS, (low, high))
    top, tall = max(int(count_B.max()), 1), HEIGHT - FOOT
    parts = []
    for count, start, stop in zip(count_B.tolist(), edge_B[:-1].tolist(), edge_B[1:].tolist(), strict=True):
        is_out = (one.low is not None and stop <= one.low) or (one.high is not None and start > one.high)
        size = {"x": f"{_x(start, low, high):.1f}", "y": f"{tall * (1 - count / top):.1f}"}
        size |= {"width": f"{WIDTH / BINS - 1:.1f}", "height": f"{tall * count / top:.1f}"}
        parts.append(tag("rect", **size, class_="out" if is_out else None))
    for bound in inside:
        x = f"{_x(bound, low, high):.1f}"
        parts.append(tag("line", x1=x, x2=x, y1=0, y2=tall, class_="level"))
    parts += [
        tag("text", number(low), x=0, y=HEIGHT - 6),
        tag("text", number(high), x=WIDTH, y=HEIGHT - 6, text_anchor="end"),
    ]
    share = np.mean(_is_inside(one))
    caption = tag("figcaption", tag("span", one.name), tag("span", f"{share:.1%} inside", class_="last"))
    svg = tag("svg", *parts, viewBox=f"0 0 {WIDTH} {HEIGHT}", role="img", aria_label=one.name)
    return tag("figure", caption, svg, class_="chart bars")


def _x(value: float, low: float, high: float) -> float:
    return WIDTH * (value - low) / (high - low)


def _is_inside(one: Histogram) -> NDArray[np.bool_]:
    low = -np.inf if one.low is None else one.low
    high = np.inf if one.high is None else one.high
    return (one.value_M >= low) & (one.value_M <= high)


def _examples(config: CurationConfig, index: Index, funnel: Funnel) -> list[Html]:
    parts = []
    for stage, name in enumerate(funnel.stages):
        sample_M = np.flatnonzero(funnel.reason_N == stage)
        if len(sample_M) and name != "unreadable":
            shown = _chosen(sample_M, _value_of(name, funnel))
            parts.append(tag("h3", f"{'Kept' if name == KEPT else name} ({len(sample_M):,})"))
            parts.append(tag("div", *(_example(config, index, funnel, one) for one in shown), class_="gallery"))
    return parts


def _value_of(stage: str, funnel: Funnel) -> NDArray[np.float32] | None:
    """What the stage judged; None where it has no number."""
    names = {"unlike its caption": "similarity", "far from curated images": "near a curated image", KEPT: "similarity"}
    return funnel.values.get(names.get(stage, stage.replace("sealed ", "near ")))


def _chosen(sample_M: NDArray[np.int64], value_N: NDArray[np.float32] | None) -> list[int]:
    """The lowest values of kept rows and the highest of dropped ones lie at a threshold: both ends are shown."""
    if value_N is not None:
        sample_M = sample_M[np.argsort(value_N[sample_M], kind="stable")]
    places = np.unique(np.linspace(0, len(sample_M) - 1, SHOWN).round().astype(int))
    return sample_M[places].tolist()


def _example(config: CurationConfig, index: Index, funnel: Funnel, sample: int) -> Html:
    row = read_sample(index, sample)
    notes = [f"{name} {value_N[sample]:.3f}" for name, value_N in funnel.values.items() if np.isfinite(value_N[sample])]
    shown = [_picture(row, config)]
    if funnel.partner_N is not None and funnel.partner_N[sample] >= 0:
        other = read_sample(index, int(funnel.partner_N[sample]))
        shown.append(_picture(other, config))
        notes.append(f"kept instead: {other['key']}")
    label = tag("span", " · ".join([row["key"], *notes]), class_="label")
    return tag("figure", tag("div", *shown, class_="map"), tag("p", row["web_caption"][:300], label))


def read_sample(index: Index, sample: int) -> SourceRow:
    """One row of the data."""
    chunk = int(index.chunks_of(np.array([sample]))[0])
    return index.read(chunk)[sample - int(index.chunks.first_sample[chunk])]


def _picture(row: SourceRow, config: CurationConfig) -> Html:
    try:
        return picture(
            decode(row["image"], config.max_image_bytes, config.max_image_pixels, SIDE_PX), SIDE_PX, row["key"]
        )
    except BadImage as error:
        return tag("span", str(error), class_="label")
