"""Evaluation of checkpoints during a run: nothing of training changes, patience ends it where the scores say."""

import pytest
import torch
from toy_run import metrics_of_run, numbers_of_run, tiny_run, write_scenes

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.errors import Faults
from tips_ray.launch import on_ranks, pretrain
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.checkpoint import CheckpointInfo, list_checkpoints
from tips_ray.runs.evaluations import Evaluation, evaluations_of, write
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import Run
from tips_ray.runs.status import status_of

pytestmark = pytest.mark.heavy
SUITE = {
    "data": {"scenes": {"kind": "scenes", "train": 8, "test": 8}},
    "tasks": {
        "retrieval": {"kind": "retrieval", "data": "scenes"},
        "neighbours": {"kind": "neighbours", "data": "scenes", "neighbours": [3]},
    },
}
SCORE = "cls_synthetic/synthetic/image_to_text_recall_at_1"


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> str:
    return write_scenes(tmp_path_factory.mktemp("data") / "scenes", 32)


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory) -> RunFolder:
    return RunFolder(pretrain(tiny_run(tmp_path_factory.mktemp("plain"), data, resources__workers=1), RankTrainer()))


def _config(place, data, **values) -> RunConfig:
    score = {"task": "retrieval", "score": SCORE, "better": "higher"}
    evaluation = {"suite": SUITE, "score": score, "pictures": 2, **values}
    return tiny_run(place, data, resources__workers=1, evaluate_every_steps=4, evaluation=evaluation)


def _steps(uri: str) -> list[int]:
    return [one.step for one in list_checkpoints(f"{uri}/checkpoints")]


@pytest.fixture
def prescribed(monkeypatch):
    """Lets evaluations find these scores by step; a step without one fails as a storage that does not answer."""
    scores = {}

    def evaluate(run: Run, checkpoint: CheckpointInfo, device: str) -> None:
        if checkpoint.step not in scores:
            raise storage.StorageError("the storage does not answer", may_pass=True)
        found = {f"retrieval/{SCORE}": scores[checkpoint.step]}
        write(run.uri, Evaluation(checkpoint.step, checkpoint.uri, "2026-01-01T00:00:00+00:00", scores=found))

    monkeypatch.setattr(on_ranks, "evaluate_checkpoint", evaluate)
    return scores


def test_an_evaluated_run_computes_the_same_numbers(tmp_path, data, undisturbed):
    config = _config(tmp_path, data)
    folder = RunFolder(pretrain(config, RankTrainer()))
    torch.testing.assert_close(numbers_of_run(folder, config), numbers_of_run(undisturbed, config), rtol=0, atol=0)
    assert metrics_of_run(folder) == metrics_of_run(undisturbed)
    found = evaluations_of(folder.uri)
    assert [one.step for one in found] == [4, 8, 12] and not any(one.failure for one in found)
    assert {"retrieval/" + SCORE, "neighbours/cls_web/accuracy_k3"} <= found[-1].scores.keys()
    pictures = storage.list_names(f"{folder.uri}/evaluation/step-00000012/pictures")
    assert {"features.png", "attention.png", "captions.png"} <= set(pictures)


def test_patience_ends_the_run_at_its_checkpoint_and_more_patience_goes_on(tmp_path, data, undisturbed, prescribed):
    prescribed.update({4: 0.5, 8: 0.4, 12: 0.3})
    config = _config(tmp_path, data, patience=1)
    uri = pretrain(config, RankTrainer())
    assert _steps(uri) == [4, 8]
    status = status_of(uri)
    assert status.state == "complete" and "ran out at step 8" in status.why
    pretrain(config, RankTrainer())
    assert _steps(uri) == [4, 8] and sum(one["kind"] == "end" for one in RunFolder(uri).read_events()) == 1
    pretrain(_config(tmp_path, data, patience=2), RankTrainer())
    folder = RunFolder(uri)
    torch.testing.assert_close(numbers_of_run(folder, config), numbers_of_run(undisturbed, config), rtol=0, atol=0)


def test_scores_that_come_after_the_end_give_the_same_checkpoint(tmp_path, data, prescribed):
    config = _config(tmp_path, data, patience=1)
    uri = pretrain(config, RankTrainer())
    assert _steps(uri) == [4, 8, 12]  # all wait, so all stay, whatever keep_last says
    prescribed.update({4: 0.5, 8: 0.4, 12: 0.9})
    pretrain(config, RankTrainer())
    assert _steps(uri) == [4, 8] and status_of(uri).state == "complete"


def test_the_best_checkpoint_stays(tmp_path, data, prescribed):
    prescribed.update({4: 0.9, 8: 0.4, 12: 0.3})
    config = _config(tmp_path, data).model_copy(update={"keep_last": 1})
    assert _steps(pretrain(config, RankTrainer())) == [4, 12]


def test_a_score_that_no_task_has_is_told_and_training_goes_on(tmp_path, data, capsys):
    evaluation = {"suite": SUITE, "score": {"task": "retrieval", "score": "recall", "better": "higher"}}
    config = tiny_run(tmp_path, data, resources__workers=1, evaluate_every_steps=12, evaluation=evaluation)
    uri = pretrain(config.model_copy(update={"checkpoint_every_steps": 12}), RankTrainer())
    (found,) = evaluations_of(uri)
    assert "there is no retrieval/recall" in found.failure and "neighbours/cls_web/accuracy_k3" in found.scores
    assert "there is no retrieval/recall" in capsys.readouterr().out


def test_missing_data_of_an_evaluation_are_told_before_the_run(tmp_path, data):
    suite = {"data": {"own": {"kind": "captioned_folder", "folder": str(tmp_path / "none")}},
             "tasks": {"retrieval": {"kind": "retrieval", "data": "own"}}}  # fmt: skip
    config = tiny_run(tmp_path, data, evaluate_every_steps=4, evaluation={"suite": suite})
    with pytest.raises(Faults, match=r"evaluation\.suite\.data\.own\.folder"):
        pretrain(config, RankTrainer())
