"""`tips-ray evaluate --suite paper`: all data sets from tiny copies in their owners' layouts to a table."""

import importlib.util
import json

import pytest
from published_sets import (
    write,
    write_ade,
    write_bts,
    write_context,
    write_docci,
    write_geonet,
    write_hub,
    write_karpathy,
    write_navi,
    write_uned,
    write_voc,
)
from toy_model import toy_model
from writers import jpeg

from jobs.cli import main

HAS_H5PY = importlib.util.find_spec("h5py") is not None
PROBED = ("voc_segmentation", "ade_segmentation", "nyu_depth", "imagenet_linear")
DECODED = ("navi_depth", "nyu_normals", "navi_normals")
SHORT = [f"tasks.{name}.probe={{steps: 2, learning_rates: [0.01]}}" for name in PROBED]
SHORT += [f"tasks.{name}.decoder={{steps: 2, hidden: 4}}" for name in DECODED]
SHORT += [f"tasks.{name}.train_size_px=14" for name in ("voc_segmentation", "ade_segmentation", "nyu_depth", *DECODED)]
SHORT += ["tasks.imagenet_knn.neighbours=[1]", "data.navi.every=1"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All data sets below their usual names, and a toy model."""
    folder = tmp_path_factory.mktemp("paper")
    write_voc(folder / "VOCdevkit" / "VOC2012")
    write_context(folder / "VOCdevkit" / "VOC2010", 60)
    write_ade(folder / "ADEChallengeData2016")
    write_bts(folder / "nyu_depth_v2")
    if HAS_H5PY:
        write_geonet(folder / "nyu_geonet")
    write_navi(folder / "navi_v1")
    write_hub(folder / "imagenet")
    write_uned(folder / "uned")
    for name, images in (("flickr30k", "flickr30k-images"), ("coco", "val2014")):
        write_karpathy(folder / "karpathy", name, images)
    write_docci(folder / "docci")
    toy_model().export_transformers(folder / "model")
    return folder


def _evaluate(root, *words: str, model: str = "model") -> int:
    return main(["evaluate", f"{root}/{model}", "--suite", "paper", f"data_root={root}", *SHORT, *words])


@pytest.mark.heavy
def test_the_paper_suite_scores_every_set_in_its_owners_layout(root, capsys):
    assert _evaluate(root, "--output", f"{root}/out") == 0
    tasks = json.loads((root / "out" / "results.json").read_text())["tasks"]
    skipped = {name for name, record in tasks.items() if "skipped" in record}
    assert skipped == (set() if HAS_H5PY else {"nyu_normals"})
    assert tasks["uned_merged"]["scores"]["cls_web/merged/recall_at_1"] <= 1
    assert tasks["voc_segmentation"]["left_out"] == {"missing (val)": 1}
    assert tasks["nyu_depth"]["config"]["task"]["eval_crop"] == "eigen"
    table = (root / "out" / "table.md").read_text()
    for name, score, ours, theirs in (
        ("ade_segmentation", "miou", "0.499", "0.495"),
        ("imagenet_linear", "cls_web/accuracy", "0.862", "0.873"),
        ("uned_merged (uned@merged)", "cls_web/merged/recall_at_1", "0.682", "0.627"),
    ):
        line = next(line for line in table.splitlines() if line.startswith(f"| {name} | {score} |"))
        assert line.endswith(f"| {ours} | {theirs} |")


def test_check_data_names_what_is_missing_and_loads_no_model(root, capsys):
    incomplete = root / "incomplete"
    write(incomplete / "VOCdevkit" / "VOC2012" / "JPEGImages" / "1.jpg", jpeg())
    words = [f"data_root={incomplete}", "--check-data"]
    assert main(["evaluate", "no-such-model", "--suite", "paper", *words]) == 1
    shown = capsys.readouterr().out
    voc = shown[: shown.index("ade ")].splitlines()
    assert voc[0].split() == ["voc", "missing", f"{incomplete}/VOCdevkit/VOC2012"]
    lists = "ImageSets/Segmentation/"
    assert f"  {lists}trainaug.txt or {lists}aug.txt" in voc and "  JPEGImages/" not in voc
    assert "  from http://host.robots.ox.ac.uk/pascal/VOC/voc2012/" in voc[-1]
    assert main(["evaluate", "no-such-model", "--suite", "scenes", "--check-data"]) == 0


def test_check_data_finds_nothing_missing_in_the_layouts(root, capsys):
    words = ["evaluate", "no-such-model", "--suite", "paper", f"data_root={root}", "--check-data"]
    assert main(words) == (0 if HAS_H5PY else 1)
    *told, last = capsys.readouterr().out.splitlines()
    assert last.startswith("Lists and folders were looked for")
    lines = [line.split() for line in told if not line.startswith(" ")]
    states = {name: state for name, state, *_ in lines}
    assert len(states) == 12 and {name for name, state in states.items() if state != "there"} == (
        set() if HAS_H5PY else {"nyu_normals"}
    )
