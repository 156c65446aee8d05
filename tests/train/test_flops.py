"""MFU: the same operations on any number of ranks, over the datasheet's peak."""

import pytest
import torch
from ranks import run_on_ranks
from toy import TOY, toy_batch, toy_config

from tips_ray.config import RunConfig, override
from tips_ray.losses import prototypes
from tips_ray.train import flops
from tips_ray.train.flops import Utilization, step_flops

CUDA = torch.device("cuda")


def _config(**values) -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": 8}
    return override(RunConfig, {**TOY, **run}, {key.replace("__", "."): value for key, value in values.items()})


def _flops() -> int:
    return step_flops(toy_config(), toy_batch(4).to("cpu", torch.float32))


@pytest.mark.heavy
def test_a_rank_counts_without_the_others():
    assert run_on_ranks(2, _flops) == [_flops()] * 2


@pytest.mark.heavy
def test_mfu_is_the_models_operations_per_second_over_the_peak(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB HBM3")
    batch = toy_batch(4).to("cpu", torch.float32)
    found = Utilization(_config(resources__dtype="bf16")).metrics(CUDA, batch, images_per_second=1e6)
    assert found == {"mfu": pytest.approx(_flops() / 4 * 1e6 / 989e12)}


def test_operations_are_counted_where_losses_are_compiled(monkeypatch):
    monkeypatch.setattr(prototypes, "_chunk", prototypes._chunk)
    expected = _flops()
    prototypes.compile_losses(True, "aot_eager")
    assert _flops() == expected


def test_the_log_says_once_that_a_cards_peak_is_not_known(monkeypatch):
    said = []
    monkeypatch.setattr(flops.log, "warning", lambda text, *values: said.append(text % values))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA Z9000")
    utilization = Utilization(_config(resources__dtype="bf16"))
    for _ in range(2):
        assert utilization.metrics(CUDA, toy_batch(4).to("cpu", torch.float32), 1.0) == {}
    assert said == ["no mfu is logged: the peak of NVIDIA Z9000 in torch.bfloat16 is not known"]


def test_without_a_known_peak_there_is_no_mfu():
    batch = toy_batch(4).to("cpu", torch.float32)
    assert Utilization(_config(resources__dtype="bf16")).metrics(torch.device("cpu"), batch, 1.0) == {}
