"""Rows of an ablation differ in their objective alone; a mistake in its file ends in one sentence."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from jobs.ablate import ABLATIONS, FULL, QUICK
from tips_ray.config import ObjectiveConfig, RunConfig, load_config, override
from tips_ray.config.ablation import MAY_SET, AblationConfig
from tips_ray.config.evaluation import trained_tokens
from tips_ray.train.state import new_state
from tuning.ablations.ablation import sweep_of
from tuning.sweeps.space import run_of

PAPER = ABLATIONS / "paper.yaml"


def _runs(seed: int = 0) -> dict[str, RunConfig]:
    sweep = sweep_of(load_config(AblationConfig, PAPER), Path("out/ablation"))
    return {row: run_of(sweep, values, row, seed) for row, values in sweep.listed.items()}


def _leaves(tree: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(tree, dict):
        return {prefix: tree}
    return {key: value for name in tree for key, value in _leaves(tree[name], f"{prefix}.{name}".lstrip(".")).items()}


def test_rows_of_the_paper_differ_only_in_name_and_objective():
    runs = {row: _leaves(run.model_dump(mode="json")) for row, run in _runs().items()}
    tips = runs.pop("tips")
    for row, run in runs.items():
        differing = {key for key in tips if run[key] != tips[key]}
        assert differing > {"name"} and all(key.startswith("objective.") for key in differing - {"name"}), row
    assert len({str(run) for run in runs.values()}) == len(runs)


@pytest.mark.heavy
def test_rows_begin_with_the_same_weights_and_seeds_do_not():
    first, *others = (new_state(run).student.state_dict() for run in _runs().values())
    for other in others:
        torch.testing.assert_close(other, first, rtol=0, atol=0)
    assert not torch.equal(new_state(_runs(seed=1)["tips"]).student.state_dict()["text.token_embedding.weight"],
                           first["text.token_embedding.weight"])  # fmt: skip


def test_the_objectives_are_those_of_the_rows_names():
    """Weights of L_CLIP, L^_CLIP, L_distill, L_mask."""
    objectives = {row: run.objective for row, run in _runs().items()}
    found = {row: (o.web_weight, o.synthetic_weight, o.alpha, o.beta) for row, o in objectives.items()}
    assert found == {
        "clip_web": (1, 0, 0, 0),
        "clip_synthetic": (0, 1, 0, 0),
        "clip_both": (0.5, 0.5, 0, 0),
        "web_distillation": (1, 0, 0.5, 0),
        "web_masking": (1, 0, 0.5, 1),
        "tips": (0.5, 0.5, 0.5, 1),
        "tips_published": (0.5, 0.5, 1, 2),
        "tips_head_ema": (0.5, 0.5, 0.5, 1),
        "tips_all_patches": (0.5, 0.5, 0.5, 1),
    }


def test_full_has_five_seeds_and_the_same_runs():
    quick, full = (load_config(AblationConfig, PAPER, [seeds]) for seeds in (QUICK, FULL))
    assert (quick.replicas, full.replicas) == (1, 5)
    assert full.model_dump(exclude={"replicas"}) == quick.model_dump(exclude={"replicas"})


def test_the_paper_s_file_holds_the_paper_s_figures():
    """TIPS, arXiv:2410.16512, Tables 1 and 11."""
    rows = load_config(AblationConfig, PAPER).rows
    assert rows["clip_web"].paper == {"segmentation": 64.4, "image_to_text": 79.1, "text_to_image": 62.9}
    assert rows["tips"].paper == {"depth": 0.478, "image_to_text": 89.2, "text_to_image": 77.3}


@pytest.mark.parametrize(
    ("weights", "tokens"),
    [
        ({}, ("cls_web", "cls_synthetic")),
        ({"synthetic_weight": 0}, ("cls_web", "cls_web")),
        ({"web_weight": 0}, ("cls_synthetic", "cls_synthetic")),
    ],
)
def test_a_row_is_scored_by_the_tokens_that_it_trains(weights, tokens):
    assert tuple(trained_tokens(ObjectiveConfig(**weights)).values()) == tokens


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rows.tips.set": {"schedule.total_steps": 9}}, r"rows.tips: set.schedule.total_steps: rows may differ in "),
        ({"rows.tips.paper": {"speed": 1}}, r"rows.tips.paper \(speed\) must be one of segmentation, "),
        ({"metrics.depth.task": "deep"}, r"metrics.depth.task \(deep\) must be one of segmentation, "),
        ({"replicas": 0}, "replicas: "),
        (
            {"suite.data.scenes.train": 19},
            r"data.scenes.train \(19\) must be at least 20, which tasks.neighbours needs",
        ),
        (
            {"suite.data.scenes.train": 1, "suite.tasks.neighbours.neighbours": [1]},
            r"data.scenes.train \(1\) must be at least 2, which tasks.segmentation needs",
        ),
    ],
)
def test_a_mistake_is_named(values, message):
    with pytest.raises(ValueError, match=message):
        override(AblationConfig, yaml.safe_load(Path(PAPER).read_text()), values)


def test_a_direction_names_rows_and_a_metric_that_are_there():
    tree = yaml.safe_load(Path(PAPER).read_text())
    for key in ("row", "over", "metric"):
        wrong = {**tree["directions"][0], key: "none"}
        with pytest.raises(ValueError, match=rf"directions.0.{key} \(none\) must be one of "):
            override(AblationConfig, tree, {"directions": [wrong]})


def test_what_rows_may_set_moves_neither_steps_nor_data_nor_first_weights():
    assert set(MAY_SET) == {"objective.", "views.mask_ratio", "captions.per_image"}
