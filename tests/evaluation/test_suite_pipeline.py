"""A suite on Ray: one task per data set, actors that encode the images."""

import json

import pytest
from ray.exceptions import WorkerCrashedError
from toy_model import toy_model

from jobs.cli import main
from tips_ray.config.evaluation import RayConfig
from tips_ray.evaluation import suite_pipeline
from tips_ray.evaluation.suite_pipeline import data_sets_at_a_time
from tips_ray.launch import cluster as ray_cluster

SUITE = """
data:
  scenes: {kind: scenes, train: 12, test: 6}
  others: {kind: scenes, train: 4, test: 5}
  photos: {kind: captioned_folder}
batch_images: 4
tasks:
  labels: {kind: segmentation, data: scenes, train_size_px: 28, probe: {steps: 4, learning_rates: [0.01, 0.1]}}
  captions: {kind: retrieval, data: others, ranks: [1]}
  deep: {kind: dpt_depth, data: scenes, train_size_px: 28, num_bins: 8, decoder: {steps: 3, hidden: 8}}
  named_labels: {kind: zero_shot_segmentation, data: scenes, windows: 2}
  photos: {kind: retrieval, data: photos}
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "suite.yaml").write_text(SUITE)
    toy_model().export_transformers(folder / "model")
    return folder


def _evaluate(place, output: str, *words: str) -> int:
    suite = f"{place}/suite.yaml"
    return main(["evaluate", f"{place}/model", "--suite", suite, "--output", f"{place}/{output}", *words])


def _tasks(place, output: str) -> dict:
    return json.loads((place / output / "results.json").read_text())["tasks"]


@pytest.mark.ray
@pytest.mark.slow
def test_scores_on_ray_are_those_of_one_process(place, cluster, capsys):
    assert _evaluate(place, "here") == 0
    assert _evaluate(place, "ray", "ray.actors=2") == 0
    here, there = _tasks(place, "here"), _tasks(place, "ray")
    assert there.keys() == here.keys() and there["photos"] == here["photos"]
    for name in here.keys() - {"photos"}:
        assert there[name]["scores"] == pytest.approx(here[name]["scores"], abs=1e-3)
        assert there[name]["config"] == here[name]["config"]
    pictures = [sorted(path.name for path in (place / output / "pictures").iterdir()) for output in ("here", "ray")]
    assert pictures[0] == pictures[1]
    capsys.readouterr()
    assert _evaluate(place, "wrong", "ray.actors=1", "tasks.named_labels.templates=[all]") == 2
    said = capsys.readouterr().err.strip()
    assert said == "error: template 'all' must have a {} where the name of the class goes"


def test_a_process_that_is_lost_is_told_in_one_sentence(place, monkeypatch, capsys):
    def lost(*arguments):
        raise WorkerCrashedError()
        yield

    monkeypatch.setattr(suite_pipeline, "tasks_on_ray", lost)
    monkeypatch.setattr(ray_cluster, "connect", lambda cpus: None)
    assert _evaluate(place, "lost", "ray.actors=2") == 1
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: evaluation stopped: a worker process was killed")
    assert told.endswith("; the same command runs the tasks that have no result") and "\n" not in told


def test_an_actor_for_which_there_is_no_gpu_is_refused(place, monkeypatch, capsys):
    monkeypatch.setattr(ray_cluster, "gpus_here", lambda: 0)
    assert _evaluate(place, "none", "ray.gpus_per_actor=1") == 2
    assert "an actor needs gpus_per_actor (1), and this machine offers 0 GPUs" in capsys.readouterr().err


def test_tasks_leave_room_for_an_actor():
    assert data_sets_at_a_time(RayConfig(), 4) == 3
    assert data_sets_at_a_time(RayConfig(cpus_per_actor=2, cpus_per_task=2), 7) == 2
    assert data_sets_at_a_time(RayConfig(), 2) == data_sets_at_a_time(RayConfig(), 1) == 1
