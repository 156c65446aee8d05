"""Ratios and errors of plans by hand arithmetic."""

import pytest

from tips_ray.planning.calibration import Comparison, errors, ratios, read, with_comparison, write


def _compared(run: str, planned: float, predicted: float, measured: float, machine: str = "h100") -> Comparison:
    return Comparison(
        machine, run, "2026-01-01T00:00:00+00:00", {"images_per_second": planned}, {"images_per_second": predicted},
        {"images_per_second": measured},
    )  # fmt: skip


KNOWN = [
    _compared("a", 100, 100, 80),  # 0.8
    _compared("b", 200, 160, 200),  # 1.0
    _compared("c", 100, 90, 50),  # 0.5
    _compared("d", 100, 100, 700, "a100"),
]


def test_the_median_of_measured_over_planned_corrects_plans_of_this_kind():
    assert ratios(KNOWN, "h100") == {"images_per_second": 0.8}
    assert ratios(KNOWN[:2], "h100") == {"images_per_second": 0.9}
    assert ratios(KNOWN, "l4") == {}


def test_errors_are_those_of_what_was_predicted_then():
    assert errors(KNOWN, "h100") == {"images_per_second": pytest.approx([0.25, -0.2, 0.8])}
    assert errors(KNOWN, "h100", last=2) == {"images_per_second": pytest.approx([-0.2, 0.8])}


def test_what_a_run_did_not_measure_has_neither():
    without = Comparison("h100", "e", "", {"memory_bytes": 5.0}, {"memory_bytes": 5.0}, {})
    assert ratios([without], "h100") == errors([without], "h100") == {}


def test_a_run_counts_once(tmp_path):
    again = _compared("a", 100, 95, 90)
    kept = with_comparison(KNOWN, again)
    assert [one.run for one in kept] == ["b", "c", "d", "a"] and ratios(kept, "h100") == {"images_per_second": 0.9}
    write(str(tmp_path / "plans" / "file.json"), kept)
    assert read(str(tmp_path / "plans" / "file.json")) == kept


def test_a_file_of_something_else_is_refused_and_none_is_empty(tmp_path):
    (tmp_path / "file.json").write_text('{"version": 9}')
    with pytest.raises(ValueError, match="holds no comparisons of plans"):
        read(str(tmp_path / "file.json"))
    assert read(str(tmp_path / "none.json")) == []
