"""The page is complete, self-contained, safe against its data, and small."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from tips_ray.report import CaptionedImage, ImageQuery, PatchFeatures, ProbeScore, Report, TextQuery, write_report
from tips_ray.report import page as page_module
from tips_ray.runs.loss_health import Finding, Trivial

EVIL = "\"><script>alert(1)</script>&amp;'"
VOID = {"meta", "img"}


def _image(seed: int = 0, side: int = 64) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (side, side, 3), np.uint8)


def _full(text: str = "a red box") -> Report:
    features = np.random.default_rng(0).normal(size=(2, 4, 4, 8))
    return Report(
        name=text,
        headline=text,
        key_scores={text: text},
        created=text,
        run={text: text},
        machine={"gpu": text},
        versions={"torch": text},
        images_per_second={text: 203.4},
        metrics=[{"step": step, "time": text, "loss/total": 1 / step, f"other {text}": 2.0} for step in range(1, 50)],
        findings=[Finding("ill", text, text, text, text), Finding("early", text, text)],
        trivial={"loss/total": Trivial(text, 0.5)},
        gallery=[CaptionedImage(_image(), text, text)],
        features=PatchFeatures([_image(), _image(1)], features, features),
        text_queries=[TextQuery(text, [_image(), _image(1)], [False, True])],
        image_queries=[ImageQuery(_image(), [text, "other"], [True, False])],
        probes=[ProbeScore(text, 0.25, 0.75), ProbeScore("rmse", 1.5, 0.5, higher_is_better=False)],
        task_pictures={text: _image()},
        events=[{"time": text, "kind": "resume", "step": 20, text: {text: text}}],
        rejects=[{"step": 3, "sample_id": 4, "key": text, "reason": text}],
        config=text,
        next_commands={text: text},
    )


def _written(tmp_path, report: Report) -> str:
    write_report(tmp_path / "new" / "report.html", report)
    return (tmp_path / "new" / "report.html").read_text()


class _Elements(HTMLParser):
    """Collects tags, and reports any that is not closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def _elements(page: str) -> list[str]:
    parser = _Elements()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return parser.seen


def test_every_part_is_there_and_every_tag_is_closed(tmp_path):
    page = _written(tmp_path, _full())
    titles = re.findall("<h2>(.*?)</h2>", page)
    assert titles == [
        "Is the loss healthy?",
        "What was run",
        "Before and after",
        "Loss curves",
        "What the patches know",
        "Retrieval",
        "Tasks on frozen features",
        "Captions",
        "Throughput",
        "Events",
        "1 bad rows",
        "Next",
    ]
    assert _elements(page).count("img") == 2 * 3 + 2 + 1 + 1 + 1


def test_a_report_of_nothing_is_a_page_without_sections(tmp_path):
    page = _written(tmp_path, Report("empty"))
    assert "section" not in _elements(page) and "<h1>empty</h1>" in page


def test_text_from_the_data_never_becomes_markup(tmp_path):
    page = _written(tmp_path, _full(EVIL))
    assert "script" not in _elements(page)
    assert _elements(page) == _elements(_written(tmp_path, _full()))


def test_the_page_asks_for_nothing_from_elsewhere(tmp_path):
    page = _written(tmp_path, _full("http://evil.example/x.png"))
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', page)
    assert sources and all(source.startswith("data:image/") for source in sources)
    assert "url(" not in page and "@import" not in page and "default-src 'none'" in page


def test_hits_are_marked_where_they_are(tmp_path):
    page = _written(tmp_path, _full())
    assert [("hit" in image) for image in re.findall('<div class="row">(<img.*?>)(<img.*?>)', page)[0]] == [False, True]
    assert '<li class="right">a red box</li><li>other</li>' in page


def test_a_lower_error_is_an_improvement(tmp_path):
    page = _written(tmp_path, _full())
    assert '<span class="better">+0.5</span>' in page and '<span class="better">−1</span>' in page
    worse = Report("x", probes=[ProbeScore("recall", 0.5, 0.25)])
    assert '<span class="worse">−0.25</span>' in _written(tmp_path, worse)


def test_student_and_teacher_share_their_colours(tmp_path):
    features = np.random.default_rng(0).normal(size=(1, 4, 4, 8))
    page = _written(tmp_path, Report("x", features=PatchFeatures([_image()], features, features)))
    student, teacher = re.findall(r'src="(data:image/png[^"]*)"', page)
    assert student == teacher


@pytest.mark.heavy
def test_many_pictures_become_small_ones(tmp_path):
    many = Report("x", gallery=[CaptionedImage(_image(seed, 300)) for seed in range(60)])
    page = _written(tmp_path, many)
    assert len(page) < page_module.MOST_BYTES
    assert set(re.findall(r'width="(\d+)"', page)) < {str(side) for side in page_module.SIDES_PX[1:]}


def test_a_page_that_stays_too_large_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(page_module, "MOST_BYTES", 20_000)
    with pytest.raises(ValueError, match=r"exceeds 20,000 bytes .* shorten gallery \(30\)"):
        write_report(tmp_path / "report.html", Report("x", gallery=[CaptionedImage(_image())] * 30))
