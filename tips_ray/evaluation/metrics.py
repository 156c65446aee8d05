"""Metrics of the evaluation tasks. Q queries, N candidates, B images, H W pixels, C classes, D width, k neighbours.

Inputs are tensors or numpy arrays; sums are float64. Input that cannot be scored raises an error instead of giving NaN.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

Array = Tensor | np.ndarray
QUERIES_AT_ONCE, CANDIDATES_AT_ONCE = 256, 65_536
"""Sizes of the block of similarities that `nearest` holds at a time: 64 MiB."""
UNIT_TOLERANCE = 1e-3


def confusion_matrix(prediction: Array, target: Array, num_classes: int, ignore_index: int | None = None) -> Tensor:
    """Pixel counts, int64 [C, C]: rows are targets, columns predictions. Counts of several maps may be added.

    Args:
        prediction: integer classes, any shape.
        target: the same shape.
        num_classes: C.
        ignore_index: target value of pixels that do not count.

    Raises:
        ValueError: shapes differ, or a class lies outside [0, C).
    """
    prediction, target = torch.as_tensor(prediction), torch.as_tensor(target)
    _same_shape("prediction", prediction, "target", target)
    _whole("prediction", prediction)
    _whole("target", target)
    kept = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    prediction, target = prediction[kept].long(), target[kept].long()
    _in_classes("prediction", prediction, num_classes, "")
    ignored = "" if ignore_index is None else f" or be ignore_index ({ignore_index})"
    _in_classes("target", target, num_classes, ignored)
    return torch.bincount(target * num_classes + prediction, minlength=num_classes**2).view(num_classes, num_classes)


def class_iou(confusion_CC: Tensor) -> Tensor:
    """Intersection over union of each class, float64 [C]; NaN for one that is neither labelled nor predicted."""
    counts_CC = confusion_CC.double()
    intersection_C = counts_CC.diagonal()
    return intersection_C / (counts_CC.sum(dim=0) + counts_CC.sum(dim=1) - intersection_C)


def mean_iou(prediction: Array, target: Array, num_classes: int, ignore_index: int | None = None) -> float:
    """Mean IoU over all maps together; a class that is only predicted counts as 0, one that never occurs is left out.

    Arguments and errors are those of `confusion_matrix`.

    Raises:
        ValueError: also if every pixel is ignored.
    """
    return mean_iou_of(confusion_matrix(prediction, target, num_classes, ignore_index))


def mean_iou_of(confusion_CC: Tensor) -> float:
    """`mean_iou` from summed confusion matrices.

    Raises:
        ValueError: all counts are 0.
    """
    if not confusion_CC.any():
        raise ValueError("target has no pixel that counts: it is empty, or every pixel is ignore_index")
    return class_iou(confusion_CC).nanmean().item()


def depth_rmse(prediction_m: Array, target_m: Array, pooled: bool = False) -> float:
    """Root mean squared error in metres over pixels whose target is not 0: per image, then the mean over images.

    Args:
        prediction_m: [B, H, W], metres.
        target_m: the same shape; 0 marks an invalid pixel.
        pooled: one root over all valid pixels together instead.

    Raises:
        ValueError: shapes differ, a target is negative or not finite, a prediction is not finite where there is a
            target, or an image has no valid pixel.
    """
    prediction_m, target_m = torch.as_tensor(prediction_m), torch.as_tensor(target_m)
    _same_shape("prediction_m", prediction_m, "target_m", target_m)
    if not (target_m.isfinite() & (target_m >= 0)).all():
        raise ValueError("target_m must be finite and not negative: metres, 0 where there is no measurement")
    valid = target_m > 0
    _finite("prediction_m", prediction_m[valid])
    squared = (prediction_m.double() - target_m.double()).square()
    return _root_mean(squared, valid, "a target above 0", pooled)


def normals_rmse_degrees(prediction: Array, target: Array, mask: Array, pooled: bool = False) -> float:
    """Root mean squared angle in degrees over pixels of the mask: per image, then the mean over images.

    Args:
        prediction: [B, 3, H, W], vectors of any length but 0.
        target: the same shape, unit vectors where `mask` is True.
        mask: boolean [B, H, W].
        pooled: one root over all pixels of the mask together instead.

    Raises:
        ValueError: shapes differ, a target is no unit vector, a prediction has no direction, or an image has no pixel.
    """
    prediction, target, mask = (torch.as_tensor(array) for array in (prediction, target, mask))
    _same_shape("prediction", prediction, "target", target)
    _same_shape("prediction[:, 0]", prediction[:, 0], "mask", mask)
    found_P3, true_P3 = (vectors.movedim(1, -1)[mask].double() for vectors in (prediction, target))
    lengths_P = true_P3.norm(dim=1)
    if not ((lengths_P - 1).abs() <= UNIT_TOLERANCE).all():
        wrong = lengths_P[~((lengths_P - 1).abs() <= UNIT_TOLERANCE)][0].item()
        raise ValueError(f"target has a vector of length {wrong:.4g}; normals must be of length 1 where mask is True")
    _finite("prediction", found_P3)
    if not found_P3.any(dim=1).all():
        raise ValueError("prediction has a vector of length 0; it must have a direction where mask is True")
    # atan2 and not acos, whose slope is infinite at 0 and 180 degrees
    angle_P = torch.atan2(torch.linalg.cross(found_P3, true_P3).norm(dim=1), (found_P3 * true_P3).sum(dim=1))
    squared = torch.zeros(mask.shape, dtype=torch.float64, device=mask.device)
    squared[mask] = angle_P.rad2deg().square()
    return _root_mean(squared, mask, "mask True", pooled)


def nearest(query_QD: Array, bank_ND: Array, k: int) -> tuple[Tensor, Tensor]:
    """The k rows of the bank with the largest cosine, best first: their cosines and row numbers, both [Q, k].

    The search is exact. It needs no memory of size Q * N and no second copy of the bank.

    Raises:
        ValueError: widths differ, a value is not finite, or k is not between 1 and N.
    """
    query_QD, bank_ND = torch.as_tensor(query_QD), torch.as_tensor(bank_ND)
    if query_QD.dim() != 2 or bank_ND.dim() != 2 or query_QD.shape[1] != bank_ND.shape[1]:
        shapes = f"query_QD {tuple(query_QD.shape)} and bank_ND {tuple(bank_ND.shape)}"
        raise ValueError(f"{shapes} must be two matrices of equal width")
    _in_candidates(k, len(bank_ND))
    query_QD = _directions("query_QD", query_QD)
    similarity_Qk, place_Qk = query_QD.new_empty(len(query_QD), 0), torch.empty(len(query_QD), 0, dtype=torch.long)
    for first in range(0, len(bank_ND), CANDIDATES_AT_ONCE):
        part_ND = _directions("bank_ND", bank_ND[first : first + CANDIDATES_AT_ONCE])
        similarity, place = _nearest_of_part(query_QD, part_ND, k)
        similarity_Qk, best_Qk = torch.cat([similarity_Qk, similarity], dim=1).topk(min(k, first + len(part_ND)), dim=1)
        place_Qk = torch.cat([place_Qk, place + first], dim=1).gather(1, best_Qk)
    return similarity_Qk, place_Qk


def knn_votes(similarity_Qk: Tensor, labels_Qk: Tensor, num_classes: int, temperature: float) -> Tensor:
    """Share of the votes for each class, [Q, C]: a neighbour's vote is exp(similarity / temperature).

    Source: the k-NN evaluation of DINOv2.
    """
    if not temperature > 0:
        raise ValueError(f"temperature ({temperature}) must be positive: it divides similarities")
    weight_Qk = (similarity_Qk.double() / temperature).softmax(dim=1)
    votes_QC = weight_Qk.new_zeros(len(weight_Qk), num_classes)
    return votes_QC.scatter_add_(1, labels_Qk, weight_Qk)


def knn_predict(query_QD: Array, bank_ND: Array, bank_labels_N: Array, k: int, temperature: float = 0.07) -> Tensor:
    """Class with most votes among the k nearest rows of the bank, int64 [Q]; the smallest of equal ones.

    Args:
        query_QD: embeddings of any norm.
        bank_ND: labelled embeddings.
        bank_labels_N: integer classes, 0 or more.
        k: neighbours that vote.
        temperature: divides cosines.

    Raises:
        ValueError: as for `nearest`, a label is negative or missing, or the temperature is not positive.
    """
    labels_N = torch.as_tensor(bank_labels_N)
    if labels_N.shape != (len(bank_ND),):
        raise ValueError(
            f"bank_labels_N {tuple(labels_N.shape)} must be ({len(bank_ND)},): one for each row of bank_ND"
        )
    similarity_Qk, place_Qk = nearest(query_QD, bank_ND, k)
    _whole("bank_labels_N", labels_N)
    num_classes = int(labels_N.max()) + 1
    _in_classes("bank_labels_N", labels_N, num_classes, "")
    return knn_votes(similarity_Qk, labels_N.long()[place_Qk], num_classes, temperature).argmax(dim=1)


def recall_at_k(similarity_QN: Array, positives_QN: Array, k: int) -> float:
    """Share of queries with at least one positive among the k most similar candidates.

    Args:
        similarity_QN: larger is more similar.
        positives_QN: boolean, True where the candidate is a right answer.
        k: between 1 and N.

    Raises:
        ValueError: shapes differ, a similarity is NaN, k is out of range, or a query has no positive.
    """
    similarity_QN, positives_QN = torch.as_tensor(similarity_QN), torch.as_tensor(positives_QN)
    _same_shape("similarity_QN", similarity_QN, "positives_QN", positives_QN)
    _in_candidates(k, similarity_QN.shape[1])
    if similarity_QN.isnan().any():
        raise ValueError("similarity_QN holds NaN; a rank needs numbers")
    if not positives_QN.any(dim=1).all():
        raise ValueError(f"{int((~positives_QN.any(dim=1)).sum())} queries of {len(positives_QN)} have no positive")
    top_Qk = similarity_QN.topk(k, dim=1).indices
    return positives_QN.gather(1, top_Qk).any(dim=1).double().mean().item()


def _nearest_of_part(query_QD: Tensor, part_ND: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Largest cosines in the part and their row numbers, at most k."""
    found = [(some_QD @ part_ND.T).topk(min(k, len(part_ND)), dim=1) for some_QD in query_QD.split(QUERIES_AT_ONCE)]
    values, indices = zip(*found, strict=True)
    return torch.cat(values), torch.cat(indices)


def _directions(name: str, rows_ND: Tensor) -> Tensor:
    """Rows scaled to length 1."""
    _finite(name, rows_ND)
    return F.normalize(rows_ND, dim=1)


def _root_mean(squared: Tensor, valid: Tensor, rule: str, pooled: bool) -> float:
    counts_B = valid.flatten(1).sum(dim=1)
    if not len(counts_B):
        raise ValueError("there is no image to score")
    if not counts_B.all():
        raise ValueError(f"{int((counts_B == 0).sum())} images of {len(counts_B)} have no pixel with {rule}")
    summed_B = squared.masked_fill(~valid, 0).flatten(1).sum(dim=1)
    if pooled:
        return (summed_B.sum() / counts_B.sum()).sqrt().item()
    return (summed_B / counts_B).sqrt().mean().item()


def _same_shape(name: str, array: Tensor, other_name: str, other: Tensor) -> None:
    if array.shape != other.shape:
        shapes = f"{name} {tuple(array.shape)} and {other_name} {tuple(other.shape)}"
        raise ValueError(f"{shapes} must have equal shape")


def _whole(name: str, classes: Tensor) -> None:
    if classes.is_floating_point() or classes.dtype == torch.bool:
        raise ValueError(f"{name} is {classes.dtype}; classes must be integers")


def _in_classes(name: str, classes: Tensor, num_classes: int, otherwise: str) -> None:
    wrong = classes[(classes < 0) | (classes >= num_classes)]
    if len(wrong):
        raise ValueError(f"{name} holds class {int(wrong[0])}; it must lie in [0, {num_classes - 1}]{otherwise}")


def _finite(name: str, values: Tensor) -> None:
    if not values.isfinite().all():
        count = int((~values.isfinite()).sum())
        raise ValueError(f"{name} holds {count} values that are not finite; NaN and infinity cannot be scored")


def _in_candidates(k: int, candidates: int) -> None:
    if not 1 <= k <= candidates:
        raise ValueError(f"k ({k}) must be between 1 and the number of candidates ({candidates})")
