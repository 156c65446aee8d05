"""Published protocols as presets, and the traps between them."""

import pytest
import torch
from torch import Tensor
from toy_model import toy_model

from tips_ray.config import load_config
from tips_ray.config.evaluation import DepthConfig, SuiteConfig
from tips_ray.config.protocols import PROTOCOLS, merged
from tips_ray.evaluation.datasets import Dataset, Examples
from tips_ray.evaluation.dense import DenseExamples
from tips_ray.evaluation.depth_bins import judged_depth, linear_depth
from tips_ray.evaluation.encoders import Features, TipsEncoder
from tips_ray.evaluation.features import Encoded, FrozenData, encoding_here
from tips_ray.evaluation.tasks import task_result

PROBE = {"steps": 3, "learning_rates": [0.1]}


def _suite(protocol: str, task: dict | None = None, data: dict | None = None) -> SuiteConfig:
    tasks = {"it": {"data": "them", "protocol": protocol, **(task or {})}}
    return SuiteConfig.model_validate({"data": {"them": {"folder": "somewhere", **(data or {})}}, "tasks": tasks})


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_a_task_on_its_data_and_survives_being_written(name):
    suite = _suite(name)
    assert suite.data["them"].kind == PROTOCOLS[name].data["kind"]
    assert SuiteConfig.model_validate(suite.model_dump(mode="json")) == suite


def test_keys_of_a_task_win_over_its_protocol():
    (task,) = _suite("nyu_depth@dinov3", {"probe": {"steps": 10}}).tasks.values()
    assert isinstance(task, DepthConfig) and task.probe.steps == 10 and task.probe.learning_rates == (3e-4,)
    assert task.protocol_words == "nyu_depth@dinov3, changed"
    (whole,) = _suite("nyu_depth@dinov3").tasks.values()
    assert whole.protocol_words == "nyu_depth@dinov3"
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}}) == {"a": {"b": 3, "c": 2}}


def test_a_data_set_that_is_not_the_protocols_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"it.protocol \(navi@probe3d\) needs .*, not data.them.relative_depth=True"):
        _suite("navi@probe3d", data={"relative_depth": True})
    suite = tmp_path / "suite.yaml"
    suite.write_text("data: {them: {folder: x}}\ntasks: {it: {data: them, protocol: nyu_depth@dinov4}}\n")
    with pytest.raises(ValueError, match=r"tasks.it.protocol \(nyu_depth@dinov4\) must be one of voc@dinov2, "):
        load_config(SuiteConfig, suite)


def test_dinov2_and_dinov3_differ_in_cls_and_not_in_crop_and_mirror_image():
    two, three = (PROTOCOLS[f"nyu_depth@{whose}"].task for whose in ("dinov2", "dinov3"))
    assert two["with_cls"] and not three["with_cls"] and PROTOCOLS["nyu_depth@tips"].task["with_cls"]
    assert all(one["eval_crop"] == "eigen" and one["flip"] and one["max_depth_m"] == 10 for one in (two, three))
    assert PROTOCOLS["nyu_depth@probe3d"].task["eval_crop"] == "none"
    assert PROTOCOLS["nyu_depth@probe3d"].data == {"kind": "nyu_geonet", "center_crop_px": 480}


def test_depth_of_navi_is_metric_up_to_a_metre_and_relative_only_by_name():
    metric, scaled = PROTOCOLS["navi@probe3d"], PROTOCOLS["navi_reldepth@probe3d"]
    assert metric.data == {"kind": "navi", "every": 4, "relative_depth": False}
    assert scaled.data["relative_depth"] and metric.task["max_depth_m"] == 1.0


def test_captions_are_karpathys_and_uned_is_merged_unless_it_says_separate():
    assert PROTOCOLS["coco@karpathy"].data == {"kind": "karpathy", "name": "coco", "captions_per_image": 5}
    kinds = [PROTOCOLS[f"uned@{kind}"].task["index"] for kind in ("merged", "separate")]
    assert kinds == [["merged"], ["separate"]]


def test_the_eigen_crop_counts_426_rows_and_560_columns():
    config = DepthConfig(data="toy", eval_crop="eigen")
    (kept,) = judged_depth([torch.ones(480, 640)], config)
    assert kept.sum() == 426 * 560
    corners = [kept[row, column].item() for row, column in ((44, 41), (45, 40), (45, 41), (470, 600), (470, 601))]
    assert corners == [0, 0, 1, 1, 0]
    with pytest.raises(ValueError, match=r"is for maps of 480 x 640 pixels, and one has \(240, 320\)"):
        judged_depth([torch.ones(240, 320)], config)
    assert judged_depth([torch.ones(2, 2)], DepthConfig(data="toy"))[0].all()


def _noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_mirror_image_is_turned_back_before_the_mean():
    """Mirrored features of an encoder without position give the same depth, so that the mean changes nothing."""
    config = DepthConfig.model_validate({"data": "toy", "train_size_px": 6, "num_bins": 4, "probe": PROBE})
    train = DenseExamples(_noise(6, 9, 4), list(1 + _noise(6, 6, 6, seed=1).abs()))
    test = DenseExamples(_noise(2, 9, 4, seed=2), list(1 + _noise(2, 6, 6, seed=3).abs()))
    turned = test._replace(patches_NLD=test.patches_NLD.unflatten(1, (3, 3)).flip(2).flatten(1, 2))
    alone, both, wrong = (linear_depth(train, test, config, mirrored=one) for one in (None, turned, test))
    torch.testing.assert_close(both.predictions_m, alone.predictions_m, atol=1e-5, rtol=0)
    assert abs(wrong.scores["rmse_m"] - alone.scores["rmse_m"]) > 1e-4


def _scores(with_cls: bool, cls_seed: int) -> dict[str, float]:
    """A depth task on features that are given, with some CLS."""
    examples = Examples(torch.zeros(4, 28, 28, 3, dtype=torch.uint8), depth_m=list(1 + _noise(4, 6, 6).abs()))
    encoder = TipsEncoder.of_model(toy_model())
    data = FrozenData(encoder, Dataset(examples, examples), encoding_here(encoder))
    given = Features(_noise(4, 9, 4), {"cls_web": _noise(4, 4, seed=cls_seed), "cls_synthetic": _noise(4, 4)})
    data.__dict__["encoded_train"] = data.__dict__["encoded_test"] = Encoded(given, [])
    keys = {"data": "toy", "train_size_px": 6, "num_bins": 4, "with_cls": with_cls, "probe": PROBE}
    return task_result(DepthConfig.model_validate(keys), data, 0).scores


def test_a_task_without_cls_does_not_read_it():
    assert _scores(False, 5) == _scores(False, 6)
    assert _scores(True, 5) != _scores(True, 6)


def test_a_long_description_is_cut_after_the_text_encoders_last_token():
    """DOCCI: whole descriptions go in, and what lies beyond the last token changes nothing."""
    encoder = TipsEncoder.of_model(toy_model())
    assert encoder.text
    words = ["sphere", "cube", "red"] * encoder.text.config.max_tokens
    long, longer = " ".join(words), " ".join([*words, "a blue cone"])
    found = encoder.texts([long, longer, "a blue cone"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])
