from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from tips_ray.evaluation.metrics import depth_rmse, recall_at_k

GOLDEN = Path(__file__).parents[1] / "golden" / "metrics.npz"


def _golden(topic: str) -> dict[str, Tensor]:
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        prefix = f"{topic}/"
        return {name.removeprefix(prefix): torch.from_numpy(arrays[name]) for name in arrays if name.startswith(prefix)}


def test_depth_errors_match_the_reference_per_image_and_pooled():
    arrays = _golden("depth")
    pair = arrays["in/pred"], arrays["in/label"]
    assert depth_rmse(*pair) == pytest.approx(arrays["out/rmse_image_mean"].item(), abs=1e-5)
    assert depth_rmse(*pair, pooled=True) == pytest.approx(arrays["out/rmse_pixel_pool"].item(), abs=1e-5)
    for prediction, target, expected in zip(*pair, arrays["out/rmse_per_image"], strict=True):
        assert depth_rmse(prediction[None], target[None]) == pytest.approx(expected.item(), abs=1e-5)


def test_retrieval_with_several_captions_matches_the_reference():
    arrays = _golden("retrieval")
    images, texts = (torch.nn.functional.normalize(arrays[f"in/{side}_features"], dim=1) for side in ("image", "text"))
    positives = torch.arange(len(images))[:, None] == arrays["in/caption_image"]
    for k in (1, 5):
        assert recall_at_k(images @ texts.T, positives, k) == pytest.approx(arrays[f"out/i2t_r{k}"].item(), abs=1e-6)
        assert recall_at_k(texts @ images.T, positives.T, k) == pytest.approx(arrays[f"out/t2i_r{k}"].item(), abs=1e-6)


def test_recall_by_hand():
    similarity = tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1], [0.1, 0.2, 0.3]])
    positives = torch.eye(3, dtype=torch.bool)
    assert recall_at_k(similarity, positives, 1) == pytest.approx(2 / 3)
    assert recall_at_k(similarity, positives, 2) == 1


def test_depth_rmse_by_hand():
    """Errors 3 and 4 in one image (root of 12.5), 0 in the other; the pixel without a target does not count."""
    target = tensor([[[1.0, 1.0, 0.0]], [[2.0, 2.0, 2.0]]])
    prediction = tensor([[[4.0, 5.0, 99.0]], [[2.0, 2.0, 2.0]]])
    assert depth_rmse(prediction, target) == pytest.approx(12.5**0.5 / 2)
    assert depth_rmse(prediction, target, pooled=True) == pytest.approx((25 / 5) ** 0.5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(2), torch.eye(3) > 0, 1), "must have equal shape"),
        ((torch.eye(2), torch.eye(2) > 0, 3), r"k \(3\) must be between 1 and the number of candidates \(2\)"),
        ((torch.eye(2), torch.eye(2) > 1, 1), "2 queries of 2 have no positive"),
    ],
)
def test_wrong_retrieval_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        recall_at_k(*arguments)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.ones(1, 2, 3), "must have equal shape"),
        (tensor([[[1.0, float("nan")]]]), "finite"),
        (tensor([[[1.0, -1.0]]]), "not negative"),
        (torch.zeros(1, 1, 2), "1 images of 1 have no pixel"),
    ],
)
def test_wrong_depth_input_is_named(target, message):
    with pytest.raises(ValueError, match=message):
        depth_rmse(torch.ones(1, 1, 2), target)
