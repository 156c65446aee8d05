"""The whole page, small enough to send by mail."""

from collections.abc import Iterable
from pathlib import Path

from tips_ray.report import sections
from tips_ray.report.content import Report
from tips_ray.report.html import Html, joined, tag
from tips_ray.report.style import CSS

MOST_BYTES = 3_000_000
SIDES_PX = (288, 224, 160, 112, 80)
"""Picture sizes, best first; the first that keeps the page below `MOST_BYTES` is used."""


def write_report(path: Path, report: Report) -> None:
    """Write one HTML file without external resources.

    Raises:
        ValueError: the page is too large even with the smallest pictures.
    """
    pages = (_page(report, side_px).encode() for side_px in SIDES_PX)
    page = next((page for page in pages if len(page) <= MOST_BYTES), None)
    if page is None:
        parts = {"gallery": report.gallery, "text_queries": report.text_queries, "image_queries": report.image_queries}
        counts = ", ".join(f"{name} ({len(part)})" for name, part in {**parts, "config": report.config}.items())
        raise ValueError(
            f"the report exceeds {MOST_BYTES:,} bytes even with pictures of {SIDES_PX[-1]} px; shorten {counts}"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(page)


def _page(report: Report, side_px: int) -> str:
    parts = [
        sections.header(report),
        sections.loss_health(report),
        sections.what_was_run(report),
        sections.probes(report),
        sections.curves(report),
        sections.evaluations(report),
        sections.feature_maps(report, side_px),
        sections.retrieval(report, side_px),
        sections.tasks(report, side_px),
        sections.gallery(report, side_px),
        sections.throughput(report),
        sections.events(report),
        sections.rejects(report),
        sections.next_commands(report),
        sections.full_config(report),
    ]
    return document(report.name, parts)


def document(name: str, parts: Iterable[Html], css: str = "") -> str:
    """A page of these parts, with further CSS after that of a report."""
    head = tag("head", _meta(), tag("title", f"{name} · tips_ray"), tag("style", Html(CSS + css)))
    return "<!doctype html>\n" + tag("html", head, tag("body", tag("main", joined(parts))), lang="en")


def _meta() -> Html:
    """Meta tags; the policy forbids scripts and external resources, whatever a caption contains."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return Html(
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
    )
