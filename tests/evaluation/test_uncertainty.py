"""Standard errors compared with hand arithmetic and with scores of many other test sets."""

import pytest
import torch

from tips_ray.evaluation.metrics import mean_iou
from tips_ray.evaluation.uncertainty import miou_error, rmse_error, share_error


def test_a_share_has_the_binomial_error():
    assert share_error(0.2, 100) == pytest.approx(0.04)  # sqrt(0.2 x 0.8 / 100)
    assert share_error(1.0, 100) == 0


def test_rmse_has_the_error_of_a_mean_over_images_and_leaves_out_what_is_far():
    targets = [torch.full((2, 2), 5.0), torch.tensor([[5.0, 5.0], [5.0, 90.0]]), torch.full((2, 2), 5.0)]
    predictions = [torch.full((2, 2), 5.0 + error) for error in (1.0, 2.0, 3.0)]
    assert rmse_error(predictions, targets, max_depth_m=20) == pytest.approx(1 / 3**0.5)  # of 1, 2, 3
    assert rmse_error(predictions[:1], targets[:1], max_depth_m=20) == 0


def test_the_error_of_miou_is_its_spread_over_test_sets_of_that_size():
    """Images of very different quality, as in practice; 400 sets of 50 images give the true spread."""
    generator = torch.Generator().manual_seed(0)

    def images(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.randint(3, (count, 8, 8), generator=generator)
        wrong = torch.rand(count, 8, 8, generator=generator) < torch.rand(count, 1, 1, generator=generator)
        return torch.where(wrong, torch.randint(3, (count, 8, 8), generator=generator), labels), labels

    truth = torch.tensor([mean_iou(*images(50), 3) for _ in range(400)]).std().item()
    found = [miou_error(*images(50), 3, None) for _ in range(10)]
    assert sum(found) / 10 == pytest.approx(truth, rel=0.15)


def test_pixels_that_do_not_count_have_no_part_in_it():
    labels = torch.tensor([[[0, 1, 9]], [[1, 0, 9]], [[0, 0, 9]]])
    predictions = torch.tensor([[[0, 1, 1]], [[0, 0, 0]], [[0, 1, 1]]])
    others = torch.tensor([[[0, 1, 0]], [[0, 0, 1]], [[0, 1, 0]]])
    assert miou_error(predictions, labels, 2, 9) == miou_error(others, labels, 2, 9) > 0
