"""The whole step on a fake CUDA device: every tensor lies there, and the host waits for nothing before it judges."""

from typing import Any

import pytest
import torch
from fake_cuda import launch_on_fake_cuda
from planning_toy import toy_run

from tips_ray import objective
from tips_ray.models import networks
from tips_ray.train import initial_weights

BF16 = {"resources__dtype": "bf16", "resources__gpus_per_worker": 1, "resources__compile": False}
ALONE = {**BF16, "resources__workers": 1, "global_batch_images": 2}
ON_64 = {**BF16, "resources__workers": 64, "global_batch_images": 128}
IN_8_COPIES = {**ON_64, "resources__replicas": 8}
TWO_PASSES, DROPPED = {"micro_batch_images": 1}, {"image__drop_path_rate": 0.1}
ADAFACTOR = {"optimizer__name": "adafactor"}
SELECTIVE, FULL = {"resources__recompute": "selective"}, {"resources__recompute": "full"}
CASES: dict[str, dict[str, Any]] = {
    "TIPS": {**ALONE, "text__max_tokens": 32},  # long enough for short texts
    "CLIP alone": {**ALONE, **ADAFACTOR, "objective__alpha": 0, "objective__beta": 0},
    "no beta": {**ON_64, **TWO_PASSES, **SELECTIVE, **DROPPED, "objective__beta": 0},
    "masked view, no alpha": {
        **IN_8_COPIES,
        **FULL,
        **DROPPED,
        "objective__alpha": 0,
        "objective__contrastive_view": "masked",
    },
    "one caption, iBOT++": {
        **ALONE,
        **TWO_PASSES,
        **FULL,
        "objective__web_weight": 1,
        "objective__synthetic_weight": 0,
        "objective__visible_weight": 1,
    },
    "averaged heads": {
        **IN_8_COPIES,
        **TWO_PASSES,
        **ADAFACTOR,
        **SELECTIVE,
        **DROPPED,
        "objective__teacher": "ema_heads",
        "resources__accumulate_unsharded": True,
    },
}
"""Every objective, one and two passes, all kinds of sharding and of recomputation, both optimizers."""


WITH_KEPT_GRAPH = ("one caption, iBOT++",)
"""Cases of two passes whose first keeps its graph."""


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case == "TIPS" else pytest.mark.heavy) for case in CASES]
)
def test_a_step_is_launched_on_the_device_and_the_host_waits_for_nothing(case):
    launch_on_fake_cuda(toy_run(**CASES[case]), 2 if case == "TIPS" else 1, keep_graph=case in WITH_KEPT_GRAPH)


@pytest.mark.heavy
def test_with_a_frozen_teacher_the_host_waits_for_nothing_either(monkeypatch):
    config = toy_run(**ALONE, objective__teacher="frozen", objective__frozen_teacher="a larger one")
    sizes = {"image": {**config.image.model_dump(), "width": 48}, "head": config.head.model_dump()}
    monkeypatch.setattr(initial_weights, "teacher_sizes", lambda config: sizes)
    state = launch_on_fake_cuda(config)
    assert state.teacher.image is not None and state.teacher.image.config.width == 48


def test_each_block_starts_the_gather_of_the_next():
    state = launch_on_fake_cuda(toy_run(**ALONE, image__depth=3, text__depth=3), steps=1)
    for network in (state.student.image, state.student.text, state.teacher.image):
        assert network is not None
        blocks: Any = network.blocks
        fsdp = [block._get_fsdp_state() for block in blocks]
        assert [one._states_to_forward_prefetch for one in fsdp] == [*([after] for after in fsdp[1:]), []]


def test_a_tensor_on_the_host_is_found_with_its_line(monkeypatch):
    monkeypatch.setattr(networks.keyed, "uniform", lambda key_B, salt: torch.rand(len(key_B)))
    with pytest.raises(
        AssertionError, match=r"tips_ray/models/networks.py:\d+: choice_B = .*found at least two devices, cpu and cuda"
    ):
        launch_on_fake_cuda(toy_run(**ALONE), steps=1)


def test_a_hidden_read_is_found_with_its_line(monkeypatch):
    moved = objective.moved_center
    monkeypatch.setattr(objective, "moved_center", lambda center_K, *rest: moved(center_K, *rest) * center_K[0].item())
    with pytest.raises(AssertionError, match=r"tips_ray/objective.py:\d+: moved_K = moved_center.*the host waits"):
        launch_on_fake_cuda(toy_run(**ALONE), steps=1)
