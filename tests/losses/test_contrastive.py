import math

import pytest
import torch
from torch import tensor

from tips_ray.losses import contrastive_loss


def _unit(rows: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, 8, dtype=torch.float64, generator=generator), dim=1)


def test_two_orthogonal_pairs_match_the_closed_form():
    loss = contrastive_loss(torch.eye(2), torch.eye(2), logit_scale=tensor(3.0))
    torch.testing.assert_close(loss, tensor(3.0).neg().exp().log1p())  # log(1 + e^-3), by hand


def test_swapped_pairs_cost_the_scale_more():
    loss = contrastive_loss(torch.eye(2), torch.eye(2).flip(0), logit_scale=3.0)
    assert loss.item() == pytest.approx(math.log1p(math.exp(-3)) + 3, abs=1e-6)


def test_an_invalid_pair_is_as_if_it_were_not_there():
    image, text, valid = _unit(6, 1), _unit(6, 2), tensor([True, False, True, True, False, True])
    image, text = image.requires_grad_(), text.requires_grad_()
    masked = torch.autograd.grad(contrastive_loss(image, text, 5.0, valid), [image, text])
    absent = torch.autograd.grad(contrastive_loss(image[valid], text[valid], 5.0), [image, text])
    torch.testing.assert_close(masked, absent, atol=1e-12, rtol=0)


def test_garbage_in_an_invalid_row_reaches_neither_loss_nor_gradient():
    image, text = _unit(3, 1), _unit(3, 2)
    image[1], text[1] = math.nan, math.inf
    image = image.requires_grad_()
    loss = contrastive_loss(image, text, 5.0, tensor([True, False, True]))
    (grad,) = torch.autograd.grad(loss, [image])
    assert loss.isfinite() and grad.isfinite().all() and not grad[1].any()


def test_a_batch_without_valid_pairs_costs_nothing():
    image = _unit(3, 1).requires_grad_()
    loss = contrastive_loss(image, _unit(3, 2), 5.0, torch.zeros(3, dtype=torch.bool))
    (grad,) = torch.autograd.grad(loss, [image])
    assert loss.item() == 0 and not grad.any()


def test_shapes_that_differ_are_named():
    with pytest.raises(ValueError, match=r"image_BD \(2, 2\) and text_BD \(3, 3\) must have equal shape"):
        contrastive_loss(torch.eye(2), torch.eye(3), 1.0)
