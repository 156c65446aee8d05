"""Decisions about a run's checkpoints: functions of the scores by step, in whatever order they came."""

import json
from itertools import permutations
from pathlib import Path

import pytest
from toy_run import tiny_run

from tips_ray.config import RunConfig
from tips_ray.config.score import ScoreConfig
from tips_ray.runs.checkpoint import CheckpointInfo, drop_later_checkpoints
from tips_ray.runs.evaluations import (
    Evaluation,
    Standing,
    drop_unneeded,
    evaluations_of,
    folder_of,
    forget_after,
    forget_failed,
    in_words,
    is_over,
    require_score,
    required,
    standing_of,
    write,
)

SUITE = {"data": {"scenes": {"kind": "scenes"}}, "tasks": {"retrieval": {"kind": "retrieval", "data": "scenes"}}}
SCORE = "retrieval/cls_synthetic/web/recall"


def _config(storage, better="higher", **values) -> RunConfig:
    score = {"task": "retrieval", "score": "{synthetic}/web/recall", "better": better}
    return tiny_run(storage, "unused", evaluate_every_steps=4, evaluation={"suite": SUITE, "score": score, **values})


def _scored(*values: float | None) -> list[Evaluation]:
    """Evaluations of steps 4, 8, 12 and so on."""
    return [Evaluation(4 * number, "unused", scores={SCORE: value}) for number, value in enumerate(values, 1)]


def _save(run_uri: Path, *steps: int) -> None:
    for step in steps:
        (folder := run_uri / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        (folder / "manifest.json").write_text(json.dumps({"version": 2, "step": step, "files": {}}))


def _infos(*steps: int) -> list[CheckpointInfo]:
    return [CheckpointInfo("unused", step, {}) for step in steps]


def _saved(run_uri: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in (run_uri / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("scores", "patience", "better", "end"),
    [
        ((0.1, 0.2, 0.3), 1, "higher", None),
        ((0.1, 0.3, 0.2, 0.4), 1, "higher", 12),
        ((0.1, 0.3, 0.2, 0.4), 2, "higher", None),
        ((0.1, 0.3, 0.3, 0.3), 2, "higher", 16),  # equal is no better
        ((0.5, 0.4, 0.45, 0.41), 2, "lower", 16),
        ((0.5, None, None, 0.6), 1, "higher", None),  # without a score nothing is known
        ((0.5, None, 0.4), 1, "higher", 12),
        ((0.5, float("nan"), 0.6), 1, "higher", None),
        ((), 1, "higher", None),
    ],
)
def test_patience_runs_out_after_so_many_evaluations_that_are_no_better(tmp_path, scores, patience, better, end):
    standing = Standing(_config(tmp_path, better, patience=patience), _scored(*scores), _infos(4, 8, 12, 16))
    assert standing.end == end


def test_a_checkpoint_that_waits_holds_the_decision_until_its_score_is_there(tmp_path):
    config, run = _config(tmp_path, patience=1), tmp_path / "tiny"
    _save(run, 4, 8, 12)
    ends = set()
    for order in permutations(_scored(0.3, 0.5, 0.4)):  # 12 is the first that is no better
        for evaluation in order:
            assert standing_of(config, str(run)).end is None
            write(str(run), evaluation)
        ends.add(standing_of(config, str(run)).end)
        forget_after(str(run), 0)
    assert ends == {12}


def test_the_best_are_named_best_first_and_earlier_before_later(tmp_path):
    assert Standing(_config(tmp_path), _scored(0.3, 0.5, None, 0.5), ()).best_steps(3) == [8, 16, 4]
    assert Standing(_config(tmp_path, "lower"), _scored(0.3, 0.5, None, float("nan")), ()).best_steps(3) == [4, 8]


def test_what_waits_and_the_best_and_the_end_are_never_deleted(tmp_path):
    config, run = _config(tmp_path, patience=1, keep_best=1), tmp_path / "tiny"
    _save(run, 4, 6, 8, 12, 16)
    for evaluation in _scored(0.3, 0.5, 0.4):
        write(str(run), evaluation)
    assert standing_of(config, str(run)).pinned == {8, 12, 16}
    drop_unneeded(config.model_copy(update={"keep_last": 1}), str(run), 16)
    assert _saved(run) == [8, 12, 16]
    drop_later_checkpoints(str(run / "checkpoints"), 12)
    assert _saved(run) == [8, 12]


def test_a_run_without_evaluation_pins_nothing(tmp_path):
    _save(tmp_path / "tiny", 4)
    assert not standing_of(tiny_run(tmp_path, "unused"), str(tmp_path / "tiny")).pinned


def test_the_last_step_is_evaluated_and_steps_in_between_are_not(tmp_path):
    config = _config(tmp_path).model_copy(update={"evaluate_every_steps": 8})
    _save(tmp_path / "tiny", 4, 8, 10, 12)
    assert [one.step for one in standing_of(config, str(tmp_path / "tiny")).waits] == [8, 12]


def test_evaluations_after_the_step_that_a_run_goes_on_from_are_forgotten(tmp_path):
    for evaluation in _scored(0.1, 0.2, 0.3):
        write(str(tmp_path), evaluation)
    forget_after(str(tmp_path), 8)
    assert [one.step for one in evaluations_of(str(tmp_path))] == [4, 8]


def test_patience_that_is_given_later_drops_no_checkpoint_of_before(tmp_path):
    run = tmp_path / "tiny"
    _save(run, 4, 12)  # that of step 8 was no better than that of step 4, and was deleted
    for evaluation in _scored(0.5, 0.4, 0.6):
        write(str(run), evaluation)
    assert standing_of(_config(tmp_path, patience=1), str(run)).end is None


def test_a_run_is_over_with_its_steps_and_evaluations_or_with_its_patience(tmp_path):
    run, config = tmp_path / "tiny", _config(tmp_path, patience=1)
    tree = config.model_dump(mode="json")
    _save(run, 4, 8, 12)
    assert not is_over(tree, str(run), 12)
    for evaluation in _scored(0.3, 0.4, 0.5):
        write(str(run), evaluation)
    assert is_over(tree, str(run), 12)
    write(str(run), _scored(0.3, 0.2)[1])
    assert not is_over(tree, str(run), 12)  # later checkpoints are to be dropped
    drop_later_checkpoints(str(run / "checkpoints"), 8)
    assert is_over(tree, str(run), 8)
    plain = tiny_run(tmp_path, "unused").model_dump(mode="json")
    assert is_over(plain, str(run), 12) and not is_over(plain, str(run), 8)


@pytest.mark.parametrize("text", ['{"step": 4, "chec', "[]", '{"step": 4, "checkpoint": "a", "scores": null}', "{}"])
def test_a_damaged_evaluation_is_made_again(text, tmp_path):
    write(str(tmp_path), _scored(0.1)[0])
    (tmp_path / "evaluation" / "step-00000004" / "scores.json").write_text(text)
    assert evaluations_of(str(tmp_path)) == []


def test_one_line_names_the_best_the_newest_and_what_waits(tmp_path):
    config, run = _config(tmp_path), tmp_path / "tiny"
    _save(run, 8, 12, 16)
    for evaluation in _scored(0.25, 0.5, 0.125):
        write(str(run), evaluation)
    assert in_words(config.model_dump(mode="json"), str(run)) == (
        f"3 checkpoints; 1 wait; best {SCORE} 0.5 at step 8; newest 0.125 at step 12"
    )
    assert folder_of(str(run), 8).endswith("evaluation/step-00000008")


@pytest.mark.parametrize(
    ("values", "fault"),
    [
        ({"evaluate_every_steps": 4}, "needs evaluation.suite"),
        ({"evaluation": {"suite": SUITE}}, "needs evaluate_every_steps"),
        ({"evaluate_every_steps": 6, "evaluation": {"suite": SUITE}}, "must be a multiple of checkpoint_every_steps"),
        ({"evaluate_every_steps": 4, "evaluation": {"suite": SUITE, "patience": 2}}, "needs score"),
        (
            {
                "evaluate_every_steps": 4,
                "evaluation": {"suite": SUITE, "score": {"task": "depth", "score": "rmse_m", "better": "lower"}},
            },
            "must be a task of the suite: retrieval",
        ),
        (
            {"evaluate_every_steps": 4, "evaluation": {"suite": {**SUITE, "mlflow_uri": "http://other"}}},
            "leave out mlflow_uri and ray",
        ),
        (
            {
                "evaluate_every_steps": 4,
                "evaluation": {"suite": {**SUITE, "tasks": {"a/b": {"kind": "retrieval", "data": "scenes"}}}},
            },
            "the name 'a/b' must have letters",
        ),
    ],
)
def test_a_config_that_cannot_be_meant_is_refused(tmp_path, values, fault):
    with pytest.raises(ValueError, match=fault):
        tiny_run(tmp_path, "unused", **values)


def test_a_score_that_no_earlier_evaluation_has_is_refused_with_near_names(tmp_path):
    write(str(tmp_path), _scored(0.1)[0])
    require_score(_config(tmp_path), str(tmp_path))
    require_score(_config(tmp_path), str(tmp_path / "new"))
    score = ScoreConfig(task="retrieval", score="cls_synthetic/web/recal", better="higher")
    other = required(_config(tmp_path)).model_copy(update={"score": score})
    with pytest.raises(ValueError, match=f"has retrieval/cls_synthetic/web/recal; it has such as {SCORE}"):
        require_score(_config(tmp_path).model_copy(update={"evaluation": other}), str(tmp_path))


def test_failed_evaluations_are_tried_again_by_the_next_start(tmp_path):
    run, config = tmp_path / "tiny", _config(tmp_path)
    _save(run, 4, 8)
    for evaluation in (*_scored(0.5), Evaluation(8, "unused", failure="no memory left")):
        write(str(run), evaluation)
    assert not standing_of(config, str(run)).waits
    assert [one.step for one in standing_of(config, str(run)).tried_again.waits] == [8]
    forget_failed(str(run))
    assert [one.step for one in evaluations_of(str(run))] == [4]
