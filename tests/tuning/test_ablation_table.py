"""The table of an ablation, made from hand-written results."""

import json
from functools import partial
from itertools import product
from pathlib import Path

import pytest
from test_ablate_command import ABLATION

from jobs.ablate import ABLATIONS
from tips_ray.config import load_config, override
from tips_ray.config.ablation import AblationConfig
from tips_ray.config.evaluation import trained_tokens
from tips_ray.evaluation.encoders import TipsEncoder
from tips_ray.evaluation.features import encoding_here
from tips_ray.evaluation.results import run_suite
from tips_ray.evaluation.suite_tasks import tasks_here
from tips_ray.models import train_tokenizer
from tips_ray.train.state import new_state
from tuning.ablations.ablation import sweep_of
from tuning.ablations.table import RowRun, written_table
from tuning.sweeps.space import run_of

SCORES = {"clip": ((0.2, 0.4), (0.1, 0.1)), "tips": ((0.5, 0.7), (0.05, 0.25))}
"""mIoU, and recall of the CLS token that counts, one value per seed; errors over test images are 0.05."""
TOKENS = {"clip": ("cls_web", "cls_synthetic"), "tips": ("cls_synthetic", "cls_web")}
"""The CLS token that counts for descriptions, and the other one."""


def _written(folder: Path, seeds: tuple[int, ...]) -> str:
    config = override(AblationConfig, ABLATION, {"replicas": len(seeds)})
    return written_table(config, [_run(config, folder, row, seed) for row in SCORES for seed in seeds], folder)


def _run(config: AblationConfig, folder: Path, row: str, seed: int) -> RowRun:
    miou, recall = (values[seed] for values in SCORES[row])
    counts, other = (f"{token}/synthetic/text_to_image_recall_at_1" for token in TOKENS[row])
    scores = {"labels": {"miou": miou}, "captions": {counts: recall, other: 0.99}}
    tasks = {task: {"scores": found, "standard_errors": dict.fromkeys(found, 0.05)} for task, found in scores.items()}
    results = folder / f"{row}-{seed}"
    results.mkdir()
    (results / "results.json").write_text(json.dumps({"tasks": tasks}))
    sweep = sweep_of(config, folder)
    return RowRun(row, seed, run_of(sweep, sweep.listed[row], row, seed), results)


def _rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]


def test_several_seeds_give_mean_and_deviation_beside_the_paper_s_figures(tmp_path):
    """mIoU differs by 0.3 and 0.3, recall by -0.05 and 0.15: deviation 0.141, margin 2 x 0.141 / sqrt 2."""
    text = _written(tmp_path, (0, 1))
    assert "4 steps of 8 images in every row, 20 rendered scenes; seeds 0, 1: ± is the standard deviation" in text
    rows = _rows(text)
    assert ["CLIP", "0.300 ± 0.141 (64.4)", "0.100 ± 0.000"] in rows
    assert ["TIPS", "0.600 ± 0.141", "0.150 ± 0.141"] in rows
    assert ["mIoU", "TIPS", "CLIP", "64.4 → 75.9", "+0.300", "0.000", "shows"] in rows
    assert ["R@1", "TIPS", "CLIP", "62.9 → 77.3", "+0.050", "0.200", "cannot tell"] in rows
    assert rows[-3:] == [["shows", "1"], ["does not show", "0"], ["cannot tell", "1"]]


def test_one_seed_is_said_to_have_no_spread(tmp_path):
    """The margin is 2 sqrt(0.05^2 + 0.05^2)."""
    text = _written(tmp_path, (0,))
    assert "one seed, so that no spread over seeds is known: ± is the standard error over the test images" in text
    assert ["CLIP", "0.200 ± 0.050 (64.4)", "0.100 ± 0.050"] in _rows(text)
    assert ["mIoU", "TIPS", "CLIP", "64.4 → 75.9", "+0.300", "0.141", "shows"] in _rows(text)


def test_results_json_has_every_value_and_verdict(tmp_path):
    _written(tmp_path, (0, 1))
    content = json.loads((tmp_path / "results.json").read_text())
    found = content["rows"]["tips"]["labels"]
    assert (found["values"], found["mean"]) == ([0.5, 0.7], pytest.approx(0.6))
    assert [one["verdict"] for one in content["directions"]] == ["shows", "cannot tell"]
    assert content["config"]["base"]["schedule"]["total_steps"] == 4


LOGGED = {"title": "distillation", "metric": "loss/distillation", "better": "lower"}


def _runs_that_log(folder: Path, seeds: tuple[int, ...], **logged: list[float | None]) -> tuple[AblationConfig, list]:
    """An ablation with a logged metric, and its runs; of each row what each seed logs in steps 2 and 3 of 4.

    With None a run logs other metrics alone. All have one score.
    """
    (clip, tips), twin = ABLATION["rows"].values(), {"title": "Twin", "set": {"objective.alpha": 0.5}}
    rows = {"clip": {"title": "CLIP", "set": clip["set"]}, "tips": tips, "twin": twin}
    directions = [{"metric": "logged", "row": "twin", "over": over, "paper": "-"} for over in ("tips", "clip")]
    metrics = {"logged": LOGGED, "labels": ABLATION["metrics"]["labels"]}
    keys = {"rows": rows, "metrics": metrics, "directions": directions, "replicas": len(seeds)}
    config, results = override(AblationConfig, ABLATION, keys), folder / "scores"
    results.mkdir()
    tasks = {"labels": {"scores": {"miou": 0.5}, "standard_errors": {"miou": 0.1}}}
    (results / "results.json").write_text(json.dumps({"tasks": tasks}))
    sweep = sweep_of(config, folder)
    runs = []
    for row, seed in product(rows, seeds):
        value = logged[row][seed]
        run = run_of(sweep, sweep.listed[row], f"{row}-{seed}", seed).model_copy(update={"storage": str(folder)})
        lines = [{"step": step, "time": "", "grad_norm": 1} for step in (2, 3, 4)]
        for line in lines[:2] if value is not None else ():
            line["loss/distillation"] = value
        metrics_folder = Path(run.storage, run.name, "metrics")
        metrics_folder.mkdir(parents=True)
        text = "".join(json.dumps(line).replace("NaN", "null") + "\n" for line in lines)
        (metrics_folder / "attempt-0001-from-00000000.jsonl").write_text(text)
        runs.append(RowRun(row, seed, run, results))
    return config, runs


@pytest.mark.parametrize(("seeds", "cell", "margin"), [((0,), "2.000", "-"), ((0, 1), "2.500 ± 0.707", "0.000")])
def test_a_logged_metric_is_a_column_which_a_row_without_it_leaves_empty(seeds, cell, margin, tmp_path):
    """TIPS logs 2 and 3, its better twin 1 and 2: the gain is 1 for each seed. CLIP logs nothing."""
    values = {"clip": [None, None], "tips": [2.0, 3.0], "twin": [1.0, 2.0]}
    config, runs = _runs_that_log(tmp_path, seeds, **{row: of_row[: len(seeds)] for row, of_row in values.items()})
    found = _rows(written_table(config, runs, tmp_path))
    spread = "0.500 ± 0.100" if len(seeds) == 1 else "0.500 ± 0.000"
    assert ["TIPS", cell, spread] in found and ["CLIP", "-", spread] in found
    verdict = "shows" if len(seeds) > 1 else "cannot tell"
    assert ["distillation", "Twin", "TIPS", "-", "+1.000", margin, verdict] in found
    assert ["distillation", "Twin", "CLIP", "-", "-", "-", "cannot tell"] in found
    content = json.loads((tmp_path / "results.json").read_text())
    assert content["rows"]["clip"]["logged"] is None and content["directions"][1]["margin"] is None


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_logged_metric_that_one_seed_lacks_is_named(value, tmp_path):
    config, runs = _runs_that_log(tmp_path, (0, 1), clip=[None, None], tips=[2.0, value], twin=[1.0, 2.0])
    with pytest.raises(ValueError, match="row tips: loss/distillation is missing or not finite for seed 1$"):
        written_table(config, runs, tmp_path)


def test_a_score_that_is_not_there_is_named(tmp_path):
    config = override(AblationConfig, ABLATION, {"metrics.labels.score": "iou"})
    runs = [_run(config, tmp_path, row, 0) for row in SCORES]
    with pytest.raises(ValueError, match="task labels has no score iou; it has miou"):
        written_table(config, runs, tmp_path)


SMALL = [f"suite.tasks.{task}.probe={{steps: 2, learning_rates: [0.01]}}" for task in ("segmentation", "depth")]
SMALL += ["suite.data.scenes={kind: scenes, train: 24, test: 24}", "suite.tasks.depth.num_bins=8"]


@pytest.mark.heavy
def test_the_paper_s_suite_gives_every_score_that_its_metrics_name(tmp_path):
    config = load_config(AblationConfig, ABLATIONS / "paper.yaml", SMALL)
    sweep = sweep_of(config, tmp_path)
    runs = [run_of(sweep, values) for values in sweep.listed.values()]
    state = new_state(runs[0])
    assert state.teacher.image is not None
    tokenizer = train_tokenizer(["a red sphere is left of a small blue cube"], 40)
    encoder = TipsEncoder(state.teacher.image, state.student.text, tokenizer)
    run_tasks = partial(tasks_here, encoder, config.suite, encoding_here(encoder))
    records = run_suite(encoder, "model", config.suite, str(tmp_path), lambda name, record: None, run_tasks)
    for run in runs:
        for metric in config.metrics.values():
            if metric.task and metric.score:
                score, record = metric.score.format(**trained_tokens(run.objective)), records[metric.task]
                assert record["scores"][score] >= 0 and record["standard_errors"][score] >= 0
