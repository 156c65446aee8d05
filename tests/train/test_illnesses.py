"""Each illness happens in a tiny training and is named; the healthy training beside it stays good."""

import itertools

import pytest
import torch
from test_loop import ListRecorder
from toy import IMAGE_PX, LOCAL_PX, TOY

from tips_ray.batch import Batch, masked_index
from tips_ray.config import RunConfig, override
from tips_ray.runs.loss_health import Finding, loss_findings
from tips_ray.train.loop import train
from tips_ray.train.state import new_state

IMAGES, PATCHES, STEPS = 8, 16, 42
HEALTHY = {
    "image.depth": 1,
    "image.layer_scale_init": 0.1,
    "text.depth": 1,
    "schedule.total_steps": STEPS,
    "schedule.warmup": 0.1,
    "schedule.peak_lr": 2e-3,
    "objective.ema_momentum": 0.9,
    "objective.teacher_temperature": 0.04,
    "log_every_steps": 1,
    "checkpoint_every_minutes": None,
    "health.stop_on_collapse": False,
}


def _colours(seed: int, masked_patches: int, contrast: float) -> Batch:
    """Images of one colour each, with captions that name it: easy to learn in a few steps. Contrast 0 is all grey."""
    generator = torch.Generator().manual_seed(seed)
    colour_B3 = torch.randint(4, (IMAGES, 3), generator=generator)

    def painted(side: int) -> torch.Tensor:
        bright_BCHW = colour_B3[..., None, None] / 3 + 0.02 * torch.randn(IMAGES, 3, side, side, generator=generator)
        return 0.5 + contrast * (bright_BCHW - 0.5)

    mask_BL = torch.rand(IMAGES, PATCHES, generator=generator).argsort(dim=1) < masked_patches
    ids_BT = 1 + colour_B3 + 4 * torch.arange(3)
    views = painted(IMAGE_PX), painted(LOCAL_PX)[None], mask_BL, masked_index(mask_BL)
    key_B = torch.randint(2**62, (IMAGES,), generator=generator)
    return Batch(*views, ids_BT, ids_BT[:, None].flip(-1), torch.ones(IMAGES, dtype=torch.bool), key_B)


def _findings(masked_patches: int = 12, contrast: float = 1.0, **values) -> list[Finding]:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": IMAGES}
    keys = HEALTHY | {key.replace("__", "."): value for key, value in values.items()}
    config = override(RunConfig, {**TOY, **run}, keys)
    batches = [[_colours(seed, masked_patches, contrast)] for seed in range(6)]
    recorder = ListRecorder()
    train(new_state(config), itertools.cycle(batches), config, recorder)
    return loss_findings(config, [{"step": step, **metrics} for step, metrics in recorder.metrics.items()])


def _ills(**values) -> set[str]:
    return {finding.short for finding in _findings(**values) if finding.level == "ill"}


def test_a_healthy_training_is_good_and_says_by_how_much():
    found = _findings()
    assert {(finding.level, finding.about) for finding in found} == {
        ("good", about) for about in ("contrastive_web", "contrastive_synthetic", "distillation", "masked_image")
    }
    seen = {finding.about: finding.seen for finding in found}
    assert "guessing gives ln 8 = 2.08" in seen["contrastive_web"] and "uniform ln 24 = 3.18" in seen["masked_image"]
    assert not any(finding.cure or finding.short for finding in found)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"masked_patches": 0}, {"nothing is masked"}),
        (
            {"objective__teacher_temperature_start": 1e-4, "objective__teacher_temperature": 1e-4},
            {"distillation targets one-hot", "masked_image targets one-hot"},
        ),
        (
            {"objective__teacher_temperature_start": 2.0, "objective__teacher_temperature": 2.0},
            {"distillation targets uniform", "masked_image targets uniform"},
        ),
        ({"objective__student_temperature": 0.003}, {"distillation above ln 24", "masked_image above ln 24"}),
        (
            {"objective__student_temperature": 5.0},
            {"distillation student temperature too high", "masked_image student temperature too high"},
        ),
        ({"objective__initial_temperature": 3.0}, {"contrastive temperature too high"}),
    ],
)
def test_an_illness_is_named_and_no_other(values, named):
    assert _ills(**values) == named


def test_without_centring_the_targets_collapse_to_one_prototype():
    """The images are pale, so that an untrained teacher has nearly the same scores for all of them."""
    collapsed = "distillation collapsed to one prototype"
    assert collapsed in _ills(contrast=0.1, objective__center_momentum=1.0)
    assert collapsed not in _ills(contrast=0.1)


def test_a_rate_that_is_too_high_leaves_the_losses_at_chance_with_all_images_alike():
    found = {finding.short for finding in _findings(schedule__peak_lr=0.3)}
    assert {"contrastive_web at ln N", "contrastive_synthetic at ln N", "cls_web collapsed"} <= found
