"""`tips-ray evaluate` from the command line to results.json."""

import json

import numpy as np
import pytest
from mlflow import MlflowClient
from PIL import Image
from toy_model import toy_model
from writers import jpeg

from jobs.cli import main
from jobs.evaluate import SUITES
from tips_ray.config import load_config
from tips_ray.config.evaluation import SuiteConfig

SUITE = """
data:
  scenes: {kind: scenes, train: 12, test: 6}
  photos: {kind: captioned_folder}
tasks:
  labels: {kind: segmentation, data: scenes, train_size_px: 28, probe: &probe {steps: 4, learning_rates: [0.01, 0.1]}}
  depth: {kind: depth, data: scenes, train_size_px: 28, num_bins: 8, max_depth_m: 20, probe: *probe}
  neighbours: {kind: neighbours, data: scenes, neighbours: [3]}
  classes: {kind: classification, data: scenes, probe: *probe}
  captions: {kind: retrieval, data: scenes, ranks: [1]}
  deep: {kind: dpt_depth, data: scenes, train_size_px: 28, num_bins: 8, decoder: &small {steps: 3, hidden: 8}}
  normals: {kind: normals, data: scenes, train_size_px: 28, decoder: *small, published: {rmse_degrees: {Other: 21.9}}}
  names: {kind: zero_shot_classification, data: scenes}
  named_labels: {kind: zero_shot_segmentation, data: scenes, windows: 2}
  photos: {kind: retrieval, data: photos}
"""
EMBEDDINGS = ("cls_web", "cls_synthetic")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A suite, a model with texts and one without."""
    folder = tmp_path_factory.mktemp("evaluate")
    (folder / "suite.yaml").write_text(SUITE)
    toy_model().export_transformers(folder / "model")
    toy_model().export_timm(folder / "timm")
    return folder


def _evaluate(place, *words: str, model: str = "model", output: str = "out") -> int:
    return main(
        ["evaluate", f"{place}/{model}", "--suite", f"{place}/suite.yaml", "--output", f"{place}/{output}", *words]
    )


def _tasks(place, output: str = "out") -> dict:
    return json.loads((place / output / "results.json").read_text())["tasks"]


@pytest.mark.heavy
def test_every_task_has_scores_of_every_embedding_and_pictures(place, capsys):
    assert _evaluate(place) == 0
    shown, tasks = capsys.readouterr().out, _tasks(place)
    assert tasks["photos"]["skipped"] == "data.photos.folder is not given" and "photos: skipped" in shown
    scores = {name: record["scores"] for name, record in tasks.items() if name != "photos"}
    assert set(scores["labels"]) == {"miou", "learning_rate"} and set(scores["depth"]) == {"rmse_m", "learning_rate"}
    assert set(scores["neighbours"]) == {f"{name}/accuracy_k3" for name in EMBEDDINGS}
    assert set(scores["names"]) == {f"{name}/accuracy" for name in EMBEDDINGS}
    assert {key.rsplit("/", 1)[0] for key in scores["captions"]} == {
        f"{name}/{kind}" for name in EMBEDDINGS for kind in ("web", "synthetic")
    }
    assert all(np.isfinite(value) for found in scores.values() for value in found.values())
    for name, found in scores.items():
        errors = tasks[name]["standard_errors"]
        assert set(errors) == {key for key in found if not key.endswith("learning_rate")}
        assert all(error >= 0 for error in errors.values())
    hits = scores["captions"]["cls_web/web/text_to_image_recall_at_1"]
    error = tasks["captions"]["standard_errors"]["cls_web/web/text_to_image_recall_at_1"]
    assert error == pytest.approx((hits * (1 - hits) / 6) ** 0.5)
    names = {path.name for path in (place / "out" / "pictures").iterdir()}
    assert {"labels-segmentation.png", "depth-depth.png", "captions-cls_web-web.png"} <= names
    assert {"deep-depth.png", "normals-normals.png"} <= names
    table = (place / "out" / "table.md").read_text().splitlines()
    assert table[0] == f"| task | score | {place}/model | Other |"
    error = tasks["normals"]["standard_errors"]["rmse_degrees"]
    assert f"| normals | rmse_degrees | {scores['normals']['rmse_degrees']:.4g} ± {error:.2g} | 21.9 |" in table
    assert not any("learning_rate" in line for line in table)
    with Image.open(place / "out" / "pictures" / "labels-segmentation.png") as picture:
        assert picture.size == (3 * 164, 4 * 164)


@pytest.mark.heavy
def test_the_same_command_runs_only_what_has_no_result(place):
    assert _evaluate(place) == 0
    before = _tasks(place)
    marked = {**before, "labels": {**before["labels"], "scores": {"miou": 0.123}}}
    del marked["names"]
    path = place / "out" / "results.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tasks": marked}))
    assert _evaluate(place, "tasks.neighbours.temperature=1") == 0
    after = _tasks(place)
    assert after["labels"]["scores"] == {"miou": 0.123}
    assert after["names"]["scores"] == before["names"]["scores"]
    assert after["neighbours"]["config"]["task"]["temperature"] == 1


@pytest.mark.heavy
def test_mlflow_gets_the_scores_in_one_run_for_a_folder(place):
    uri = f"sqlite:///{place}/mlflow.db"
    for _ in range(2):
        assert _evaluate(place, f"mlflow_uri={uri}") == 0
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("tips_ray evaluation")
    assert experiment
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.metrics["normals/rmse_degrees"] == _tasks(place)["normals"]["scores"]["rmse_degrees"]
    assert run.info.status == "FINISHED" and run.data.tags["model"] == f"{place}/model"


@pytest.mark.heavy
def test_a_task_whose_data_changed_runs_again(place):
    photos = place / "photos"
    (photos / "images").mkdir(parents=True)
    for number in range(3):
        (photos / "images" / f"{number}.jpg").write_bytes(jpeg(60 * number))

    table = photos / "captions.csv"
    table.write_text("image,caption\n0.jpg,one\n1.jpg,two\n2.jpg,three\n")

    def files() -> str:
        assert _evaluate(place, f"data.photos.folder={photos}", output="changing") == 0
        return _tasks(place, "changing")["photos"]["config"]["files"]

    first = files()
    assert files() == first
    scores = _tasks(place, "changing")["photos"]["scores"]
    assert _evaluate(place, output="changing") == 0
    assert _tasks(place, "changing")["photos"]["scores"] == scores, "a folder that is not given takes nothing away"
    table.write_text(table.read_text().replace("three", "four"))
    assert files() != first


@pytest.mark.heavy
def test_two_runs_give_the_same_scores(place):
    assert _evaluate(place, output="again") == 0
    names = ("depth", "classes", "captions", "named_labels")
    assert [_tasks(place, "again")[name]["scores"] for name in names] == [
        _tasks(place)[name]["scores"] for name in names
    ]


def test_results_of_other_weights_are_not_mixed(place, capsys):
    assert (_evaluate(place), _evaluate(place, model="timm")) == (0, 2)
    assert "holds results of other weights" in capsys.readouterr().err


@pytest.mark.heavy
def test_a_model_without_texts_skips_what_needs_them(place):
    assert _evaluate(place, model="timm", output="timm-out") == 0
    tasks = _tasks(place, "timm-out")
    skipped = {name for name, record in tasks.items() if "skipped" in record}
    assert skipped == {"captions", "names", "named_labels", "photos"}
    assert tasks["names"]["skipped"].startswith("this model reads no texts")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "fast"], "--suite (fast) must be one of demo, paper, protocols, quick, scenes, or a YAML file"),
        (["tasks.labels.data=streets"], "tasks.labels.data (streets) must be one of scenes, photos"),
        (["tasks.depth.min_depth_m=30"], "min_depth_m (30.0) must be below max_depth_m (20.0)"),
        (["data.photos.folder=none", "data.photos.kind=class_folder"], "none: no file is there"),
        (["image_size_px=30"], "image_size_px (30) must be a multiple of the patch size (14)"),
    ],
)
def test_a_mistake_ends_in_one_sentence(words, message, place, capsys):
    assert _evaluate(place, *words, output="mistakes") == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(SUITES.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_suite_is_valid(path):
    assert load_config(SuiteConfig, path, ()).tasks


@pytest.mark.heavy
def test_masks_of_0_and_255_of_which_255_is_ignored_are_refused(place, capsys):
    for kind in ("images", "labels"):
        (place / "masks" / "val" / kind).mkdir(parents=True)
    (place / "masks" / "val" / "images" / "0.jpg").write_bytes(jpeg())
    Image.fromarray(np.array([[0, 255] * 4] * 6, np.uint8)).save(place / "masks" / "val" / "labels" / "0.png")
    masks = f"{{kind: labelled_folder, folder: {place}/masks, class_names: [wall, dog], ignore_index: 255}}"
    task = "tasks={masks: {kind: zero_shot_segmentation, data: masks}}"
    assert _evaluate(place, f"data={{masks: {masks}}}", task, output="masks-out") == 2
    error = capsys.readouterr().err
    assert f"error: {place}/masks/val/labels: every pixel is 0 or 255, and ignore_index (255) does not count" in error
