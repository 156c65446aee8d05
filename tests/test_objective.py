import pytest
import torch

from tips_ray.config import ObjectiveConfig
from tips_ray.objective import Centers, weighted_total

TERMS = {
    "contrastive_web": torch.tensor(1.0),
    "contrastive_synthetic": torch.tensor(10.0),
    "distillation": torch.tensor(100.0),
    "masked_image": torch.tensor(1000.0),
}


def test_the_total_has_the_published_weights():
    """1/2 (1 + 10) + 1 x 100 + 2 x 1000."""
    assert weighted_total(TERMS, ObjectiveConfig()).item() == pytest.approx(2105.5)


def test_alpha_and_beta_weigh_their_own_term():
    """1/2 (1 + 10) + 0.5 x 100 + 3 x 1000."""
    assert weighted_total(TERMS, ObjectiveConfig(alpha=0.5, beta=3)).item() == pytest.approx(3055.5)


def test_absent_terms_weigh_nothing():
    assert weighted_total({"contrastive_web": torch.tensor(1.0)}, ObjectiveConfig()).item() == 0.5
    assert weighted_total({}, ObjectiveConfig()).item() == 0


def test_each_center_moves_by_its_own_sum():
    centers = Centers(2)
    centers.move({"distillation": torch.tensor([4.0, 8.0, 2.0])}, momentum=0.5)
    assert centers.distillation_K.tolist() == [1, 2] and centers.masked_image_K.tolist() == [0, 0]
