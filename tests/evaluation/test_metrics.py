from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, tensor

from tips_ray.evaluation import metrics
from tips_ray.evaluation.metrics import (
    class_iou,
    confusion_matrix,
    depth_rmse,
    knn_predict,
    knn_votes,
    mean_iou,
    nearest,
    normals_rmse_degrees,
    recall_at_k,
)

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


def test_segmentation_matches_the_reference_absent_and_merely_predicted_classes_included():
    arrays = _golden("seg")
    maps = arrays["in/pred"], arrays["in/label"]
    rule = int(arrays["in/num_classes"]), int(arrays["in/ignore_index"])
    confusion = confusion_matrix(*maps, *rule)
    assert torch.equal(confusion, arrays["out/confusion"])
    torch.testing.assert_close(
        class_iou(confusion).float(), arrays["out/iou"].float(), atol=1e-6, rtol=0, equal_nan=True
    )
    assert mean_iou(*maps, *rule) == pytest.approx(arrays["out/miou"].item(), abs=1e-6)
    assert mean_iou(maps[0].numpy(), maps[1].numpy(), *rule) == mean_iou(*maps, *rule)
    parts = [confusion_matrix(one, label, *rule) for one, label in zip(*maps, strict=True)]
    assert torch.equal(torch.stack(parts).sum(dim=0), confusion)


def test_normals_match_the_reference_per_image_and_pooled():
    arrays = _golden("normals")
    inputs = arrays["in/pred"], arrays["in/label"], arrays["in/mask"]
    assert normals_rmse_degrees(*inputs) == pytest.approx(arrays["out/rmse_deg_image_mean"].item(), abs=1e-3)
    pooled = normals_rmse_degrees(*inputs, pooled=True)
    assert pooled == pytest.approx(arrays["out/rmse_deg_pixel_pool"].item(), abs=1e-3)


def test_neighbours_vote_as_in_the_reference(monkeypatch):
    """The votes also match when queries and bank are cut into parts."""
    arrays = _golden("knn")
    bank = arrays["in/train_features"], arrays["in/train_labels"]
    temperature, classes = arrays["in/temperature"].item(), int(arrays["in/num_classes"])
    for chunks in ((256, 65_536), (7, 11), (1, 3)):
        monkeypatch.setattr(metrics, "QUERIES_AT_ONCE", chunks[0])
        monkeypatch.setattr(metrics, "CANDIDATES_AT_ONCE", chunks[1])
        for row, k in enumerate(arrays["in/k"].tolist()):
            found = knn_predict(arrays["in/test_features"], *bank, k, temperature)
            assert torch.equal(found, arrays["out/predictions"][row])
            similarity, place = nearest(arrays["in/test_features"], bank[0], k)
            votes = knn_votes(similarity, bank[1][place], classes, temperature)
            torch.testing.assert_close(votes.float(), arrays["out/votes"][row].float(), atol=1e-5, rtol=0)


def test_mean_iou_by_hand():
    """Class 0: 1 of 2, class 1: 1 of 2, class 2 only predicted (at an ignored pixel), class 3 nowhere."""
    target, prediction = tensor([[0, 0, 1, 9]]), tensor([[0, 1, 1, 2]])
    assert mean_iou(prediction, target, 4, 9) == pytest.approx((1 / 2 + 1 / 2) / 2)
    assert mean_iou(tensor([0, 2]), tensor([0, 1]), 4) == pytest.approx(1 / 3)


def test_normals_by_hand():
    """Angles of 90 and 0 degrees, for vectors of any length; the pixel outside the mask does not count."""
    target = torch.zeros(1, 3, 1, 3)
    target[:, 2, :, :2] = 1
    prediction = tensor([[[0.0, 5, 1]], [[0, 0, 1]], [[2, 0, 1]]])[None]
    mask = tensor([[[True, True, False]]])
    assert normals_rmse_degrees(prediction, target, mask) == pytest.approx((90**2 / 2) ** 0.5)


def test_a_near_neighbour_outvotes_two_far_ones():
    """Votes by hand: exp(1 / 0.1) against 2 exp(0.6 / 0.1); at a high temperature the two win."""
    bank, labels = tensor([[1.0, 0], [0.6, 0.8], [0.6, -0.8], [-1, 0]]), tensor([1, 0, 0, 2])
    assert knn_predict(tensor([[2.0, 0]]), bank, labels, 3, 0.1).tolist() == [1]
    assert knn_predict(tensor([[2.0, 0]]), bank, labels, 3, 10.0).tolist() == [0]


def test_the_order_of_the_bank_does_not_matter():
    generator = torch.Generator().manual_seed(0)
    bank, query = torch.randn(50, 6, generator=generator), torch.randn(9, 6, generator=generator)
    labels, order = torch.randint(4, (50,), generator=generator), torch.randperm(50, generator=generator)
    found = knn_predict(query, bank, labels, 7), knn_predict(query, bank[order], labels[order], 7)
    assert torch.equal(*found)


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


def test_a_depth_that_is_not_finite_is_named_only_where_it_counts():
    target, prediction = tensor([[[1.0, 0.0]]]), tensor([[[1.0, float("nan")]]])
    assert depth_rmse(prediction, target) == 0
    with pytest.raises(ValueError, match="prediction_m holds 1 values that are not finite"):
        depth_rmse(prediction.flip(2), target)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        (tensor([0]), tensor([0, 1]), r"prediction \(1,\) and target \(2,\) must have equal shape"),
        (tensor([3]), tensor([0]), r"prediction holds class 3; it must lie in \[0, 2\]"),
        (tensor([0]), tensor([-1]), r"target holds class -1; it must lie in \[0, 2\] or be ignore_index \(9\)"),
        (tensor([0.5]), tensor([0]), "prediction is torch.float32; classes must be integers"),
        (tensor([0]), tensor([9]), "no pixel that counts"),
    ],
)
def test_wrong_segmentation_input_is_named(prediction, target, message):
    with pytest.raises(ValueError, match=message):
        mean_iou(prediction, target, 3, 9)


@pytest.mark.parametrize(
    ("prediction", "target", "message"),
    [
        ([0.0, 0, 1], [0.0, 0, 2], "a vector of length 2; normals must be of length 1"),
        ([0.0, 0, 1], [0.0, 0, float("nan")], "a vector of length nan"),
        ([0.0, 0, 0], [0.0, 0, 1], "prediction has a vector of length 0"),
        ([0.0, 0, float("inf")], [0.0, 0, 1], "prediction holds 1 values that are not finite"),
    ],
)
def test_wrong_normals_are_named(prediction, target, message):
    maps = tensor(prediction).view(1, 3, 1, 1), tensor(target).view(1, 3, 1, 1)
    with pytest.raises(ValueError, match=message):
        normals_rmse_degrees(*maps, torch.ones(1, 1, 1, dtype=torch.bool))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.eye(2), torch.eye(3), tensor([0, 1, 2]), 1), "must be two matrices of equal width"),
        ((torch.eye(2), torch.eye(2), tensor([0]), 1), r"bank_labels_N \(1,\) must be \(2,\)"),
        ((torch.eye(2), torch.eye(2), tensor([0, -1]), 1), "bank_labels_N holds class -1"),
        ((torch.eye(2), torch.eye(2), tensor([0, 1]), 3), r"k \(3\) must be between 1 and"),
        ((torch.eye(2), torch.eye(2) / 0, tensor([0, 1]), 1), "bank_ND holds 4 values that are not finite"),
        ((torch.eye(2), torch.eye(2), tensor([0, 1]), 1, 0.0), r"temperature \(0.0\) must be positive"),
    ],
)
def test_wrong_neighbours_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        knn_predict(*arguments)


def test_a_similarity_that_is_no_number_is_named():
    with pytest.raises(ValueError, match="similarity_QN holds NaN"):
        recall_at_k(tensor([[float("nan"), 1.0]]), tensor([[True, False]]), 1)
