import math

import pytest
import torch

from tips_ray.config import ObjectiveConfig
from tips_ray.models.networks import Embeddings
from tips_ray.objective import Centers, contrastive_terms, weighted_total

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


def test_each_caption_has_a_weight_of_its_own():
    """0.25 x 1 + 1 x 10."""
    terms = {name: TERMS[name] for name in ("contrastive_web", "contrastive_synthetic")}
    assert weighted_total(terms, ObjectiveConfig(web_weight=0.25, synthetic_weight=1)).item() == pytest.approx(10.25)


@pytest.mark.parametrize(("kept", "other"), [("web", "synthetic"), ("synthetic", "web")])
def test_a_caption_without_weight_leaves_one_term_of_its_own_pair(kept, other):
    """Two orthogonal pairs of the kept caption, each its own best match: log(1 + e^-2); the others all alike: log 2."""
    pairs = {kept: torch.eye(2), other: torch.ones(2, 2) / 2**0.5}
    embeddings = Embeddings(pairs["web"], pairs["synthetic"], pairs["web"], pairs["synthetic"])
    config = ObjectiveConfig.model_validate({f"{kept}_weight": 1, f"{other}_weight": 0})
    terms = contrastive_terms(embeddings, -torch.tensor([2.0]).log(), torch.ones(2, dtype=torch.bool), config)
    assert set(terms) == {f"contrastive_{kept}"}
    assert weighted_total(terms, config).item() == pytest.approx(math.log1p(math.exp(-2)))


def test_one_caption_at_least_has_a_weight():
    with pytest.raises(ValueError, match="web_weight .0. and synthetic_weight .0.: one of them must be above 0"):
        ObjectiveConfig(web_weight=0, synthetic_weight=0)


def test_absent_terms_weigh_nothing():
    assert weighted_total({"contrastive_web": torch.tensor(1.0)}, ObjectiveConfig()).item() == 0.5
    assert weighted_total({}, ObjectiveConfig()).item() == 0


def test_each_center_moves_by_its_own_sum():
    centers = Centers(2)
    centers.move({"distillation": torch.tensor([4.0, 8.0, 2.0])}, momentum=0.5)
    assert centers.distillation_K.tolist() == [1, 2] and centers.masked_image_K.tolist() == [0, 0]
