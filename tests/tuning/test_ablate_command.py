"""`tips-ray ablate` from a file to its table."""

import json
from pathlib import Path

import pytest
import yaml
from toy_run import TINY

from jobs.cli import main
from tips_ray.runs.folder import RunFolder

PROBE = {"steps": 4, "learning_rates": [0.01]}
DENSE = {"data": "scenes", "train_size_px": 28, "probe": PROBE}
OWN_KEYS = ("name", "data", "resources")
ABLATION = {
    "base": {
        **{key: value for key, value in TINY.items() if key not in OWN_KEYS},
        "schedule": {"total_steps": 4, "peak_lr": 1e-3, "warmup": 0.2},
        "data": {"chunk_rows": 4, "window_chunks": 3, "log_samples": True},
    },
    "scenes": 20,
    "rows": {
        "clip": {
            "title": "CLIP",
            "set": {
                "objective.synthetic_weight": 0,
                "objective.web_weight": 1,
                "objective.alpha": 0,
                "objective.beta": 0,
            },
            "paper": {"labels": 64.4},
        },
        "tips": {"title": "TIPS"},
    },
    "metrics": {
        "labels": {"title": "mIoU", "task": "labels", "score": "miou"},
        "recall": {"title": "R@1", "task": "captions", "score": "{synthetic}/synthetic/text_to_image_recall_at_1"},
    },
    "directions": [
        {"metric": "labels", "row": "tips", "over": "clip", "paper": "64.4 → 75.9"},
        {"metric": "recall", "row": "tips", "over": "clip", "paper": "62.9 → 77.3"},
    ],
    "suite": {
        "data": {"scenes": {"kind": "scenes", "train": 6, "test": 6}},
        "tasks": {"labels": {"kind": "segmentation", **DENSE}, "captions": {"kind": "retrieval", "data": "scenes"}},
    },
}


def _ablate(folder: Path, *words: str) -> int:
    (folder / "ablation.yaml").write_text(yaml.safe_dump(ABLATION))
    return main(["ablate", str(folder / "ablation.yaml"), *words, "--output", str(folder / "out"), "--without-ray"])


def _times(folder: Path) -> dict[Path, int]:
    """Time of the last change of each run and each result."""
    return {path: path.stat().st_mtime_ns for part in ("runs", "evaluation") for path in (folder / part).rglob("*")}


@pytest.mark.slow
def test_rows_are_trained_on_the_same_images_scored_and_not_run_twice(tmp_path, capsys):
    assert _ablate(tmp_path, "only=[tips]") == 0
    out, shown = tmp_path / "out", capsys.readouterr().out
    assert "| TIPS |" in shown and "| CLIP |" not in shown
    before = _times(out)
    assert _ablate(tmp_path) == 0
    assert before.items() <= _times(out).items()
    shown = capsys.readouterr().out
    clip, tips = (RunFolder(f"{out}/runs/setting-000{number}-seed-0") for number in (1, 0))
    assert clip.read_samples() == tips.read_samples() and len(clip.read_samples()) == 4
    losses = [{key for key in run.read_metrics()[-1] if key.startswith("loss/")} for run in (clip, tips)]
    assert losses[0] == {"loss/contrastive_web", "loss/total"} and len(losses[1]) == 5
    results = json.loads((out / "results.json").read_text())
    evaluated = json.loads((out / "evaluation/setting-0001-seed-0/step-00000004/results.json").read_text())
    scores = evaluated["tasks"]["captions"]["scores"]
    assert results["rows"]["clip"]["recall"]["values"] == [scores["cls_web/synthetic/text_to_image_recall_at_1"]]
    assert [one["verdict"] for one in results["directions"]][1] in ("shows", "does not show", "cannot tell")
    assert (out / "table.md").read_text().strip() in shown and "(64.4)" in shown
    before = _times(out)
    assert _ablate(tmp_path) == 0
    assert _times(out) == before
    boom = "rows.boom={title: Boom, set: {objective.alpha: 1.0e+30}}"
    assert _ablate(tmp_path, boom) == 1
    said = capsys.readouterr()
    assert "error: row boom has no scores: seed 0: step 1 is bad" in said.err
    assert (out / "table.md").read_text().strip() in said.out and "| TIPS |" in said.out and "Boom" not in said.out
    before = _times(out)
    assert _ablate(tmp_path, "base.schedule.total_steps=5") == 2
    assert "error: base.schedule.total_steps: 4 -> 5; " in capsys.readouterr().err and _times(out) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("other.yaml",), "FILE must be one"),
        (
            ("base.schedule.peak_Ir=1",),
            "schedule.peak_Ir: Extra inputs are not permitted; did you mean schedule.peak_lr?",
        ),
        (("metrics.labels.score='{wab}/miou'",), "metrics.labels: score (wab) must be one of web, synthetic"),
        (
            ("metrics.recall={title: loss, metric: loss/totl}",),
            "metrics.recall.metric (loss/totl) is logged by no run; did you mean loss/total?",
        ),
        (("metrics.recall={title: loss, task: labels}",), "metrics.recall: give metric, or task and score"),
        (
            ("metrics={recall: {title: loss, metric: loss/total}}", "directions=[]", "rows.clip.paper={}"),
            "metrics: one of them must be a score of a task",
        ),
        (
            ("rows.tips.set={objective.alpha: 0}", "rows.clip.set={objective.alpha: 0}"),
            "rows.clip.set and rows.tips.set give the same run: leave one of the rows out",
        ),
        (("rows.tips.set={objective.alpha: -1}",), "rows.tips.set: objective.alpha: "),
        (("base.data.sources=[{uri: photos}]",), "scenes (20) and base.data.sources: leave one of them out"),
        (
            ("suite.data.scenes={kind: captioned_folder}", "suite.tasks={labels: {kind: retrieval, data: scenes}}"),
            "metrics.recall.task (captions) must be one of labels",
        ),
        (("suite.data.scenes={kind: geometry_folder}",), "suite.data.scenes.folder is not given: name it, or"),
        (
            ("suite.data.scenes={kind: voc2012}", "suite.data_root=sets"),
            "suite.data.scenes.folder is not given, and sets/VOCdevkit/VOC2012 lacks files: name it, or",
        ),
        (("suite.data.scenes={kind: geometry_folder, folder: none}",), "suite.data.scenes.folder (/"),
        (("base.data=5",), "data is a int without keys; give it whole"),
        (("scenes=null",), "scenes, or base.data.sources: one of them must be given"),
        (("only=[clop]",), "only.0 (clop) must be one of clip, tips"),
        (("rows.tips.set={seed: 3}",), "rows.tips: set.seed: rows may differ in objective."),
    ],
)
def test_a_mistake_ends_in_one_sentence_before_anything_is_made(words, message, tmp_path, capsys):
    assert _ablate(tmp_path, *words) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and message in told and not (tmp_path / "out").exists()
