"""Distillation, masked image loss and centre compared with hand arithmetic for two prototypes."""

import math

import pytest
import torch
from given_scores import given_scores
from torch import Tensor, tensor

from tips_ray.losses import distillation_loss, masked_image_loss, moved_center, score_sum

ZERO = torch.zeros(2)
LN2 = math.log(2)


def _distillation(student_VBK: Tensor, teacher_BK: Tensor, *options, **keywords) -> Tensor:
    return distillation_loss(given_scores(student_VBK), given_scores(teacher_BK), *options, **keywords)


def test_a_uniform_student_costs_ln_2_whatever_the_teacher_says():
    loss = _distillation(torch.zeros(3, 2, 2), tensor([[1.0, 0.0], [0.0, 1.0]]), ZERO, 0.1, 0.04)
    assert loss.item() == pytest.approx(LN2)


def test_cross_entropy_of_one_crop_by_hand():
    """Teacher (ln 3, 0) at temperature 1: p = (3/4, 1/4). Student (ln 2, 0) at 0.5 -> (2 ln 2, 0): q = (4/5, 1/5)."""
    loss = _distillation(tensor([[[LN2, 0.0]]]), tensor([[math.log(3), 0.0]]), ZERO, 0.5, 1.0)
    assert loss.item() == pytest.approx(-(0.75 * math.log(0.8) + 0.25 * math.log(0.2)))


def test_the_center_is_subtracted_from_the_teacher_alone():
    """Centre (ln 3, 0) levels the teacher: p = (1/2, 1/2), against q = (4/5, 1/5)."""
    center = tensor([math.log(3), 0.0])
    loss = _distillation(tensor([[[LN2, 0.0]]]), tensor([[math.log(3), 0.0]]), center, 0.5, 1.0)
    assert loss.item() == pytest.approx(-0.5 * math.log(0.8 * 0.2))


def test_crops_and_valid_images_are_averaged():
    student = tensor([[[LN2, 0.0], [9.0, 9.0]], [[0.0, 0.0], [9.0, 0.0]]])  # two crops of two images
    teacher = tensor([[math.log(3), 0.0], [5.0, 0.0]])
    loss = _distillation(student, teacher, ZERO, 0.5, 1.0, valid_B=tensor([True, False]))
    sharp = -(0.75 * math.log(0.8) + 0.25 * math.log(0.2))
    assert loss.item() == pytest.approx((sharp + LN2) / 2)


def _masked_loss(mask: torch.Tensor, **options) -> float:
    """Loss of a uniform student (ln 2 per patch) at masked patches of image 0, and q = (1/5, 4/5) in image 1."""
    index = mask.flatten().nonzero().flatten()
    student = torch.where((index // mask.shape[1] == 0)[:, None], tensor([0.0, 0.0]), tensor([0.0, LN2]))
    teacher = torch.tensor([30.0, 0.0]).expand(len(index), 2)  # p = (1, 0)
    scores = given_scores(student), given_scores(teacher)
    return masked_image_loss(*scores, index, mask, ZERO, 0.5, 1.0, **options).item()


def test_patches_are_averaged_within_an_image_and_images_alike():
    """One masked patch at ln 2, three at ln 5: the mean over images is (ln 2 + ln 5) / 2, the one over patches not."""
    mask = tensor([[True, False, False, False], [True, True, True, False]])
    assert _masked_loss(mask) == pytest.approx((LN2 + math.log(5)) / 2)


def test_an_image_without_masked_patches_counts_as_zero_and_stays_in_the_mean():
    assert _masked_loss(tensor([[True, True], [False, False]])) == pytest.approx(LN2 / 2)


def test_an_invalid_image_leaves_the_mean():
    mask = tensor([[True, True], [True, True]])
    assert _masked_loss(mask, valid_B=tensor([True, False])) == pytest.approx(LN2)


def test_the_share_of_a_larger_batch_is_taken_from_its_valid_count():
    mask = tensor([[True, True], [True, True]])
    assert _masked_loss(mask, global_valid=8) == pytest.approx((LN2 + math.log(5)) / 8)


def test_the_center_moves_by_the_mean_of_counted_rows():
    scores = given_scores(tensor([[1.0, 2.0], [3.0, 4.0], [100.0, math.nan]]))
    sums = score_sum(scores, tensor([True, True, False]))
    assert sums.tolist() == [4.0, 6.0, 2.0]
    assert moved_center(tensor([10.0, 10.0]), sums, 0.9).tolist() == pytest.approx([9.2, 9.3])


def test_the_center_stays_where_nothing_was_counted():
    sums = score_sum(given_scores(tensor([[1.0, 2.0]])), tensor([False]))
    assert moved_center(tensor([10.0, -1.0]), sums, 0.9).tolist() == [10.0, -1.0]


def test_heads_with_other_numbers_of_prototypes_are_refused():
    with pytest.raises(ValueError, match="same number of prototypes"):
        _distillation(torch.zeros(1, 1, 3), torch.zeros(1, 2), ZERO, 0.1, 0.1)
