"""Encoders side by side: bold, noise, other settings, and scores that moved."""

import json
from pathlib import Path

import pytest

from jobs.cli import main
from tips_ray.evaluation.leaderboard import LEGEND, markdown, moved_scores, page, read_results, rows_of


def _write(folder: Path, model: str, weights: str = "w", size: int = 224, **scores: tuple[float, float]) -> str:
    """Results with a task for each score; `depth` is an RMSE, other scores are mIoU."""
    tasks = {}
    for name, (value, error) in scores.items():
        score = "rmse_m" if name == "depth" else "miou"
        config = {"task": {"kind": name, "data": "d"}, "data": {"kind": "voc2012", "folder": str(folder)}}
        tasks[name] = {
            "scores": {score: value, "learning_rate": 0.1},
            "standard_errors": {score: error},
            "config": {**config, "image_size_px": size},
        }
    folder.mkdir(parents=True)
    tasks["absent"] = {"skipped": "no folder", "config": {}}
    (folder / "results.json").write_text(json.dumps({"model": model, "weights": weights, "tasks": tasks}))
    return str(folder)


def _set_kind(folder: str, task: str, **keys: str) -> None:
    path = Path(folder) / "results.json"
    content = json.loads(path.read_text())
    content["tasks"][task]["config"]["data"].update(keys)
    path.write_text(json.dumps(content))


def test_the_best_is_bold_and_what_the_images_cannot_tell_from_it_is_marked(tmp_path):
    """By hand: noise of .80 +- .01 and .77 +- .01 is 1.96 x .01414 = .0277 < .03; with .78 it is > .02."""
    folders = [
        _write(tmp_path / "a", "A", seg=(0.80, 0.01), depth=(0.50, 0.001)),
        _write(tmp_path / "b", "B", "v", 448, seg=(0.78, 0.01), depth=(0.40, 0.001)),
        _write(tmp_path / "c", "C", "u", seg=(0.77, 0.01)),
    ]
    table = markdown([read_results(folder) for folder in folders]).splitlines()
    assert table[0] == "| task | score | A | B | C |"
    assert table[2] == "| seg | miou | **0.8 ± 0.01** | 0.78 ± 0.01 ≈ | 0.77 ± 0.01 |"
    assert table[3] == "| depth | rmse_m | 0.5 ± 0.001 | **0.4 ± 0.001** |  |"
    assert len(table) == 6 and table[-1] == LEGEND


def test_scores_of_other_settings_are_shown_and_not_compared(tmp_path):
    folders = [_write(tmp_path / name, name, name, seg=(value, 0.01)) for name, value in (("a", 0.5), ("b", 0.9))]
    _set_kind(folders[1], "seg", kind="ade20k")
    (row,) = rows_of([read_results(folder) for folder in folders])
    assert row.cells[1] and row.cells[1].is_other and not any(cell and cell.is_best for cell in row.cells)
    assert "0.9 ± 0.01 † |" in markdown([read_results(folder) for folder in folders])


def test_scores_on_fewer_images_are_not_compared(tmp_path):
    folders = [_write(tmp_path / name, name, name, seg=(value, 0.01)) for name, value in (("a", 0.5), ("b", 0.9))]
    path = Path(folders[1]) / "results.json"
    content = json.loads(path.read_text())
    content["tasks"]["seg"]["left_out"] = {"missing": 1}
    path.write_text(json.dumps(content))
    (row,) = rows_of([read_results(folder) for folder in folders])
    assert row.cells[1] and row.cells[1].is_other


def test_a_score_of_the_same_model_that_moved_by_more_than_its_noise_is_an_alarm(tmp_path):
    old = _write(tmp_path / "old", "M", seg=(0.80, 0.01), depth=(0.50, 0.01))
    new = _write(tmp_path / "new", "M", seg=(0.81, 0.01), depth=(0.55, 0.01))
    other = _write(tmp_path / "other", "N", "n", depth=(0.90, 0.01))
    entries = [read_results(folder) for folder in (old, other, new)]
    (alarm,) = moved_scores(entries)
    assert alarm.startswith(
        "M: depth rmse_m moved from 0.5 to 0.55, and its standard error is 0.01 (the same weights; "
    )
    assert not moved_scores(entries[:2])
    _set_kind(new, "depth", a_new_key="1")
    assert len(moved_scores([read_results(folder) for folder in (old, new)])) == 1, "a key of a later version"
    _set_kind(new, "depth", kind="nyu_bts")
    assert not moved_scores([read_results(folder) for folder in (old, new)]), "other data: nothing to compare"


def test_the_command_writes_both_tables_and_ends_with_1_at_an_alarm(tmp_path, capsys):
    old, new = (_write(tmp_path / str(n), "<M>", seg=(n, 0.01)) for n in (0.5, 0.6))
    assert main(["leaderboard", old, new, "--output", str(tmp_path / "board")]) == 1
    shown = capsys.readouterr().out
    assert "moved        <M>: seg miou moved from 0.5 to 0.6" in shown and "**0.6 ± 0.01**" in shown
    html = (tmp_path / "board" / "leaderboard.html").read_text()
    assert "<b>0.6 ± 0.01</b>" in html and "&lt;M&gt;" in html and "<M>" not in html
    assert (tmp_path / "board" / "leaderboard.md").read_text() in shown
    assert main(["leaderboard", new]) == 0
    assert main(["leaderboard", str(tmp_path)]) == 2
    assert "has no results.json: give folders that tips-ray evaluate has written" in capsys.readouterr().err


def test_a_damaged_file_of_results_is_told(tmp_path):
    (tmp_path / "results.json").write_text('{"model": "M"}')
    with pytest.raises(ValueError, match=r"results.json is damaged \(KeyError: 'weights'\); evaluate again"):
        read_results(str(tmp_path))
    assert "<table>" in page([], [])
