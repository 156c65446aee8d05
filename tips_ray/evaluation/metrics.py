"""Metrics of the evaluation tasks. Q queries, N candidates, B images, H W pixels."""

from torch import Tensor


def recall_at_k(similarity_QN: Tensor, positives_QN: Tensor, k: int) -> float:
    """Share of queries with at least one positive among the k most similar candidates.

    Args:
        similarity_QN: larger is more similar.
        positives_QN: boolean, True where the candidate is a right answer.
        k: between 1 and N.

    Raises:
        ValueError: shapes differ, k is out of range, or a query has no positive.
    """
    if similarity_QN.shape != positives_QN.shape:
        shapes = f"similarity_QN {tuple(similarity_QN.shape)} and positives_QN {tuple(positives_QN.shape)}"
        raise ValueError(f"{shapes} must have equal shape")
    if not 1 <= k <= similarity_QN.shape[1]:
        raise ValueError(f"k ({k}) must be between 1 and the number of candidates ({similarity_QN.shape[1]})")
    if not positives_QN.any(dim=1).all():
        raise ValueError(f"{int((~positives_QN.any(dim=1)).sum())} queries of {len(positives_QN)} have no positive")
    top_Qk = similarity_QN.topk(k, dim=1).indices
    return positives_QN.gather(1, top_Qk).any(dim=1).double().mean().item()


def depth_rmse(prediction_m: Tensor, target_m: Tensor, pooled: bool = False) -> float:
    """Root mean squared error in metres over pixels whose target is not 0: per image, then the mean over images.

    Args:
        prediction_m: [B, H, W], metres.
        target_m: the same shape; 0 marks an invalid pixel.
        pooled: one root over all valid pixels together instead.

    Raises:
        ValueError: shapes differ, a target is negative or not finite, or an image has no valid pixel.
    """
    if prediction_m.shape != target_m.shape:
        shapes = f"prediction_m {tuple(prediction_m.shape)} and target_m {tuple(target_m.shape)}"
        raise ValueError(f"{shapes} must have equal shape")
    if not (target_m.isfinite() & (target_m >= 0)).all():
        raise ValueError("target_m must be finite and not negative: metres, 0 where there is no measurement")
    valid = target_m > 0
    counts_B = valid.flatten(1).sum(dim=1)
    if not counts_B.all():
        raise ValueError(f"{int((counts_B == 0).sum())} images of {len(counts_B)} have no pixel with a target above 0")
    squared_B = (prediction_m.double() - target_m.double()).square().masked_fill(~valid, 0).flatten(1).sum(dim=1)
    if pooled:
        return (squared_B.sum() / counts_B.sum()).sqrt().item()
    return (squared_B / counts_B).sqrt().mean().item()
