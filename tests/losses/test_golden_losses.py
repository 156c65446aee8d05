"""Losses compared with tests/golden, made by public reference code; sizes and temperatures come from the files."""

from pathlib import Path

import numpy as np
import pytest
import torch
from given_scores import given_scores
from torch import Tensor

from tips_ray.losses import contrastive_loss, distillation_loss, masked_image_loss, moved_center, score_sum
from tips_ray.losses.prototypes import teacher_probabilities

GOLDEN = Path(__file__).parents[1] / "golden"


def _arrays(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _names(file: str, prefix: str, suffix: str) -> list[str]:
    """The parts between prefix and suffix of the file's keys."""
    keys = np.load(GOLDEN / file, allow_pickle=False).files
    return [
        key[len(prefix) : len(key) - len(suffix)] for key in keys if key.startswith(prefix) and key.endswith(suffix)
    ]


@pytest.mark.parametrize("captions", _names("clip_loss.npz", "out/", "/grad_raw_image"))
def test_contrastive_loss_and_every_gradient_match_open_clip(captions):
    arrays = _arrays("clip_loss.npz")
    raw = [arrays[f"in/raw/{side}_{captions}"].requires_grad_() for side in ("image", "text")]
    unit = [(value / value.norm(dim=1, keepdim=True)).requires_grad_() for value in raw]
    log_temperature = (-arrays["in/logit_scale"].log()).requires_grad_()
    loss = contrastive_loss(unit[0], unit[1], (-log_temperature).exp())
    grads = torch.autograd.grad(loss, [*unit, *raw, log_temperature])
    expected = ("grad_image", "grad_text", "grad_raw_image", "grad_raw_text", "grad_log_logit_scale")
    torch.testing.assert_close(loss, arrays[f"out/{captions}/loss"], atol=1e-10, rtol=0)
    for name, grad in zip(expected, grads, strict=True):
        sign = -1 if name == "grad_log_logit_scale" else 1  # log temperature = -log of the scale
        torch.testing.assert_close(sign * grad, arrays[f"out/{captions}/{name}"], atol=1e-10, rtol=0)


def test_half_the_sum_of_both_captions_with_one_temperature_matches_open_clip():
    arrays = _arrays("clip_loss.npz")
    scale = arrays["in/logit_scale"].requires_grad_()
    web, synthetic = (
        contrastive_loss(arrays[f"in/image_{captions}"], arrays[f"in/text_{captions}"], scale)
        for captions in ("web", "syn")
    )
    loss = (web + synthetic) / 2
    torch.testing.assert_close(loss, arrays["out/both/loss"], atol=1e-10, rtol=0)
    (grad,) = torch.autograd.grad(loss, [scale])
    torch.testing.assert_close(grad, arrays["out/both/grad_logit_scale"], atol=1e-10, rtol=0)


def test_distillation_over_two_steps_matches_dinov2():
    """DINOv2 sums over crops, we average (TIPS.md, D): theirs = ours x number of crops."""
    arrays = _arrays("dino_loss.npz")
    center_K, momentum = arrays["in/center"][0], arrays["in/center_momentum"].item()
    for step, teacher_BK in enumerate(arrays["in/teacher_logits"]):
        student_VBK = arrays["in/student_logits"][step].requires_grad_()
        crops = len(student_VBK)
        temperatures = arrays["in/student_temp"].item(), arrays["in/teacher_temp"].item()
        probability_BK = teacher_probabilities(given_scores(teacher_BK), center_K, arrays["in/teacher_temp"])
        torch.testing.assert_close(probability_BK, arrays["out/teacher_probs"][step], atol=5e-6, rtol=0)
        loss = distillation_loss(given_scores(student_VBK), given_scores(teacher_BK), center_K, *temperatures)
        torch.testing.assert_close(loss, arrays["out/loss_mean"][step], rtol=1e-5, atol=0)
        torch.testing.assert_close(loss * crops, arrays["out/loss_sum"][step], rtol=1e-5, atol=0)
        (grad_VBK,) = torch.autograd.grad(loss * crops, [student_VBK])
        torch.testing.assert_close(grad_VBK, arrays["out/grad_student_of_loss_sum"][step], atol=5e-6, rtol=0)
        sum_K1 = score_sum(given_scores(teacher_BK), torch.ones(len(teacher_BK), dtype=torch.bool))
        center_K = moved_center(center_K, sum_K1, momentum)
        torch.testing.assert_close(center_K, arrays["out/center"][step, 0], atol=1e-6, rtol=0)


def test_each_crop_alone_matches_dinov2():
    arrays = _arrays("dino_loss.npz")
    for crop, expected in enumerate(arrays["out/loss_per_crop"][0]):
        loss = distillation_loss(
            given_scores(arrays["in/student_logits"][0, crop : crop + 1]),
            given_scores(arrays["in/teacher_logits"][0]),
            arrays["in/center"][0],
            arrays["in/student_temp"].item(),
            arrays["in/teacher_temp"].item(),
        )
        torch.testing.assert_close(loss, expected, rtol=1e-5, atol=0)


def _patch_loss(arrays: dict[str, Tensor], student_BLK: Tensor, visible_weight: float) -> Tensor:
    """Loss over masked patches, as in TIPS; over all patches with a visible weight."""
    mask_BL = arrays["in/mask"]
    chosen = torch.ones_like(mask_BL) if visible_weight else mask_BL
    index_M = chosen.flatten().nonzero().flatten()
    return masked_image_loss(
        given_scores(student_BLK.flatten(0, 1)[index_M]),
        given_scores(arrays["in/teacher_logits"].flatten(0, 1)[index_M]),
        index_M,
        mask_BL,
        arrays["in/center"][0],
        arrays["in/student_temp"].item(),
        arrays["in/teacher_temp"].item(),
        visible_weight=visible_weight,
    )


@pytest.mark.parametrize(
    ("weight_name", "loss_name", "grad_name"),
    [
        (None, "ibot/loss_per_image", "ibot/grad_student_of_loss_per_image"),
        (1.0, "ibotpp/loss_masked_plus_visible", "ibotpp/grad_student_of_loss_masked_plus_visible"),
        ("in/visible_weight", "ibotpp/loss_masked_plus_weighted_visible", None),
    ],
)
def test_masked_image_loss_and_gradient_match_ibot_and_ibot_plus_plus(weight_name, loss_name, grad_name):
    arrays = _arrays("ibot_loss.npz")
    weight = arrays[weight_name].item() if isinstance(weight_name, str) else weight_name or 0.0
    student_BLK = arrays["in/student_logits"].requires_grad_()
    loss = _patch_loss(arrays, student_BLK, weight)
    torch.testing.assert_close(loss, arrays[f"out/{loss_name}"], rtol=1e-5, atol=0)
    if grad_name:
        (grad_BLK,) = torch.autograd.grad(loss, [student_BLK])
        torch.testing.assert_close(grad_BLK, arrays[f"out/{grad_name}"], atol=5e-6, rtol=0)


def test_mean_over_all_patches_is_the_loss_of_an_all_true_mask():
    """The patch loss of a frozen teacher uses this mask; `loss_patch_mean` weighs all patches alike and is not ours."""
    arrays = _arrays("ibot_loss.npz")
    arrays["in/mask"] = torch.ones_like(arrays["in/mask"])
    loss = _patch_loss(arrays, arrays["in/student_logits"], 0.0)
    torch.testing.assert_close(loss, arrays["out/ibotpp/loss_all_patch_mean"], rtol=1e-5, atol=0)


def test_teacher_probabilities_of_patches_match_dinov2():
    arrays = _arrays("ibot_loss.npz")
    teacher = given_scores(arrays["in/teacher_logits"])
    probability = teacher_probabilities(teacher, arrays["in/center"][0], arrays["in/teacher_temp"])
    torch.testing.assert_close(probability, arrays["out/ibot/teacher_probs"], atol=5e-6, rtol=0)


@pytest.mark.parametrize("counted", _names("ibot_loss.npz", "out/ibot/center_from_", ""))
def test_patch_center_matches_dinov2_for_masked_and_lightly_for_all_patches(counted):
    arrays = _arrays("ibot_loss.npz")
    counted_R = arrays["in/mask"].flatten() | (counted == "all")
    sum_K1 = score_sum(given_scores(arrays["in/teacher_logits"].flatten(0, 1)), counted_R)
    center_K = moved_center(arrays["in/center"][0], sum_K1, arrays["in/center_momentum"].item())
    torch.testing.assert_close(center_K, arrays[f"out/ibot/center_from_{counted}"][0], atol=1e-6, rtol=0)
