"""Evaluation of checkpoints during a run: nothing of training changes, patience ends it where the scores say."""

import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
import pytest
import torch
import yaml
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities import LoggedModel
from torch.nn import functional as F
from toy_run import metrics_of_run, numbers_of_run, scene_row, tiny_run, write_scenes

from tips_ray import storage
from tips_ray.config import RunConfig
from tips_ray.data.decode import decode
from tips_ray.errors import Faults
from tips_ray.evaluation.datasets.examples import squashed_image
from tips_ray.evaluation.encoders import in_unit_range
from tips_ray.evaluation.load_encoder import load_encoder
from tips_ray.launch import checkpoint_evaluation, on_ranks, pretrain
from tips_ray.launch.checkpoint_evaluation import evaluate_checkpoint
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.launch.promotion import promote
from tips_ray.report import write_report
from tips_ray.report.of_folder import report_of
from tips_ray.runs.checkpoint import CheckpointInfo, list_checkpoints
from tips_ray.runs.evaluations import Evaluation, Standing, evaluations_of, standing_of, write
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.mlflow_models import send_evaluations
from tips_ray.runs.mlflow_note import stored_run_id
from tips_ray.runs.run import Run, run_at
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


@pytest.fixture(scope="module")
def evaluated(data, tmp_path_factory) -> tuple[RunConfig, RunFolder]:
    """A run whose checkpoints of steps 4, 8 and 12 were evaluated."""
    config = _config(tmp_path_factory.mktemp("evaluated"), data)
    return config, RunFolder(pretrain(config, RankTrainer()))


@pytest.fixture
def client() -> MlflowClient:
    return MlflowClient(f"sqlite:///{os.environ['TIPS_RAY_TESTS_MLFLOW']}")


def run_id_of(run_uri: str) -> str:
    return str(stored_run_id(run_uri))


def _models(client: MlflowClient, folder: RunFolder) -> list[LoggedModel]:
    run = client.get_run(run_id_of(folder.uri))
    found = client.search_logged_models([run.info.experiment_id], f"source_run_id = '{run.info.run_id}'")
    return sorted(found, key=lambda model: int(model.tags["step"]))


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


def test_an_evaluated_run_computes_the_same_numbers(evaluated, undisturbed):
    config, folder = evaluated
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
    assert (
        "there is no retrieval/recall; there are such as retrieval/" in found.failure
        and "neighbours/cls_web/accuracy_k3" in found.scores
    )
    assert "there is no retrieval/recall" in capsys.readouterr().out


def test_missing_data_of_an_evaluation_are_told_before_the_run(tmp_path, data):
    suite = {"data": {"own": {"kind": "captioned_folder", "folder": str(tmp_path / "none")}},
             "tasks": {"retrieval": {"kind": "retrieval", "data": "own"}}}  # fmt: skip
    config = tiny_run(tmp_path, data, evaluate_every_steps=4, evaluation={"suite": suite})
    with pytest.raises(Faults, match=r"evaluation\.suite\.data\.own\.folder"):
        pretrain(config, RankTrainer())


def test_mlflow_has_each_checkpoint_once_with_its_scores_data_and_pictures(evaluated, client):
    config, folder = evaluated
    send_evaluations(client, run_id := run_id_of(folder.uri), config, folder.uri)  # once more changes nothing
    models, known = _models(client, folder), evaluations_of(folder.uri)
    assert [model.name for model in models] == ["tiny-step-4", "tiny-step-8", "tiny-step-12"]
    for model, evaluation in zip(models, known, strict=True):
        found = {metric.key: metric for metric in model.metrics or ()}
        assert {name: metric.value for name, metric in found.items()} == {
            f"evaluation/{name}": value for name, value in evaluation.scores.items()
        }
        assert {(metric.dataset_name, metric.step) for metric in found.values()} == {("scenes", evaluation.step)}
    order = [{"field_name": f"metrics.evaluation/retrieval/{SCORE}", "dataset_name": "scenes", "ascending": False}]
    experiment = client.get_run(run_id).info.experiment_id
    found = client.search_logged_models([experiment], f"source_run_id = '{run_id}'", order_by=order)
    best = standing_of(config, folder.uri).best_steps(3)
    assert int(list(found or ())[0].tags["step"]) in best
    assert client.get_run(run_id).data.tags["best_step"] == str(best[0])
    images = [file.path for file in client.list_artifacts(run_id, "images") if file.path.endswith(".png")]
    assert len([path for path in images if path.startswith("images/attention+step+")]) == 3
    assert {one.model_id for one in client.get_run(run_id).outputs.model_outputs} == {one.model_id for one in models}


def test_a_checkpoint_becomes_candidate_then_champion_and_embeds_as_the_run_does(evaluated, client, monkeypatch):
    config, folder = evaluated
    (step,) = standing_of(config, folder.uri).best_steps()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{os.environ['TIPS_RAY_TESTS_MLFLOW']}")
    candidate = promote(folder.uri, "tips_tests", "candidate")
    assert (candidate.step, candidate.before) == (step, None)
    champion = promote(folder.uri, "tips_tests", "champion")
    assert champion.version == candidate.version  # nothing was registered twice
    newest = promote(folder.uri, "tips_tests", "champion", 12)
    assert newest.before == champion.version if step != 12 else newest.version == champion.version
    model = _models(client, folder)[2]
    stored = download_artifacts(str(model.artifact_location))
    names = [path.name for path in Path(stored).rglob("*") if path.is_file()]
    assert "MLmodel" in names and not [name for name in names if name.endswith((".pkl", ".pickle", ".bin", ".pt"))]
    image, text = scene_row(90)["image"], "a red cone"
    rows = pd.DataFrame({"image": [image, None], "text": [None, text]})
    found = mlflow.pyfunc.load_model(stored).predict(rows)
    assert found["image_embedding"].isna().tolist() == [False, True]
    encoder = load_encoder(f"{folder.uri}/checkpoints/step-00000012")
    pixels = squashed_image(decode(image, 1 << 20, 1 << 20), encoder.image_size_px)[None]
    expected = F.normalize(encoder.features(in_unit_range(pixels)).embeddings["cls_synthetic"], dim=-1)[0]
    cosine = torch.tensor(found["image_embedding"][0], dtype=torch.double) @ expected.double()
    assert cosine == pytest.approx(1, abs=1e-3)  # transformers resizes a little differently
    model = mlflow.pyfunc.load_model(stored)
    for row, sentence in (({"image": ["photo.jpg"]}, "give the bytes"), ({"image": [b"no image"]}, "are no image")):
        with pytest.raises(Exception, match=sentence):
            model.predict(pd.DataFrame(row))
    embedded, expected = torch.tensor(found["text_embedding"][1]), encoder.texts([text])[0]
    torch.testing.assert_close(embedded.float(), expected.float(), atol=1e-5, rtol=0)


def test_the_checkpoint_that_a_run_starts_from_is_its_input_model(evaluated, data, client, tmp_path):
    _, first = evaluated
    config = tiny_run(
        tmp_path,
        data,
        name="next",
        resources__workers=1,
        start={"uri": first.uri},
        captions__tokenizer=f"{first.uri}/tokenizer.json",
    )
    second = pretrain(config, RankTrainer(), until_step=1)
    run = client.get_run(run_id_of(second))
    (given,) = run.inputs.model_inputs
    assert given.model_id == _models(client, first)[2].model_id
    assert run.data.tags["lineage.start"].endswith("tiny/checkpoints/step-00000012")


def test_an_outage_of_the_storage_delays_patience_and_stops_nothing(tmp_path, data, prescribed, monkeypatch):
    prescribed.update({4: 0.5, 8: 0.4, 12: 0.3})
    real, outages = checkpoint_evaluation.standing_of, iter([True, True])

    def away_twice(config: RunConfig, run_uri: str) -> Standing:
        if next(outages, False):
            raise storage.StorageError("the storage does not answer", may_pass=True)
        return real(config, run_uri)

    monkeypatch.setattr(checkpoint_evaluation, "standing_of", away_twice)
    assert _steps(pretrain(_config(tmp_path, data, patience=1), RankTrainer())) == [4, 8]


def test_an_evaluation_without_pictures_or_with_data_that_are_gone_goes_on(tmp_path, data, client):
    folder = tmp_path / "classes"
    for split in ("train", "val"):
        (place := folder / split / "cone").mkdir(parents=True)
        (place / "1.jpg").write_bytes(scene_row(1)["image"])
    suite = {"data": {"own": {"kind": "class_folder", "folder": str(folder)}},
             "tasks": {"neighbours": {"kind": "neighbours", "data": "own", "neighbours": [1]}}}  # fmt: skip
    config = tiny_run(tmp_path, data, name="plain", resources__workers=1, evaluate_every_steps=4,
                      evaluation={"suite": suite, "pictures": 0})  # fmt: skip
    uri = pretrain(config, RankTrainer(), until_step=4)
    run = run_at(uri)
    tasks = {"scenes": {"kind": "neighbours", "data": "scenes", "neighbours": [3]}, **suite["tasks"]}
    both = {"data": {**suite["data"], **SUITE["data"]}, "tasks": tasks}
    config = tiny_run(tmp_path, data, name="plain", resources__workers=1, evaluate_every_steps=4,
                      evaluation={"suite": both, "pictures": 0})  # fmt: skip
    shutil.rmtree(folder / "val")
    found = evaluate_checkpoint(replace(run, config=config), list_checkpoints(run.checkpoints_uri)[0])
    assert found.failure.startswith("neighbours: ") and "val" in found.failure
    assert found.scores.keys() == {"scenes/cls_web/accuracy_k3", "scenes/cls_synthetic/accuracy_k3"}
    assert [model.status for model in _models(client, RunFolder(uri))] == ["READY"]
    write_report(tmp_path / "report.html", report_of(uri))


def test_two_ranks_end_with_patience_and_exit_code_0(tmp_path, data):
    probe = {"optimizer": "sgd", "steps": 2, "warmup": 0.0, "batch_images": 4, "learning_rates": [0.1]}
    suite = {**SUITE, "tasks": {"classes": {"kind": "classification", "data": "scenes", "probe": probe}}}
    score = {"task": "classes", "score": "cls_web/learning_rate", "better": "lower"}  # is always the same: no better
    config = _config(tmp_path, data, suite=suite, score=score, patience=1)
    tree = config.model_dump(mode="json") | {"schedule": {**config.schedule.model_dump(mode="json"), "total_steps": 60}}
    (path := tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "jobs.cli", "pretrain"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *torchrun, str(path), "--without-ray"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    uri = f"{config.storage}/tiny"
    assert _steps(uri)[-1] == 8 and RunFolder(uri).read_events()[-1]["status"] == "FINISHED"
    assert "the run ends with the checkpoint of step 8" in done.stdout and status_of(uri).state == "complete"


@pytest.mark.ray
@pytest.mark.slow
def test_on_ray_the_scores_are_the_same_and_patience_ends_at_the_same_checkpoint(evaluated, data, tmp_path, cluster):
    scores = {one.step: one.scores[f"retrieval/{SCORE}"] or 0.0 for one in evaluations_of(evaluated[1].uri)}
    better = "higher" if scores[8] <= scores[4] else "lower"  # step 8 is no better than step 4
    score = {"task": "retrieval", "score": SCORE, "better": better}
    uri = pretrain(_config(tmp_path, data, score=score, patience=1))
    found = {one.step: one.scores[f"retrieval/{SCORE}"] for one in evaluations_of(uri)}
    assert found == {4: scores[4], 8: scores[8]}  # none of step 12: nothing depends on it any more
    assert _steps(uri)[-1] == 8 and status_of(uri).state == "complete"
