"""Patch features as colours. B images, H x W patches, D channels."""

import numpy as np

TAILS = (2, 98)  # percentiles that become 0 and 255, so that a few outliers do not take all the contrast


def pca_rgb(features_BHWD: np.ndarray) -> np.ndarray:
    """The three directions of largest variance over all patches of all images, as red, green and blue.

    Equal features get equal colours in every image. PCA leaves the sign of a direction open; the one that makes the
    rarer side bright is used, so that objects stand out from the background.

    Returns:
        uint8 [B, H, W, 3]; mid-grey where a direction does not vary.
    """
    flat_ND = features_BHWD.reshape(-1, features_BHWD.shape[-1]).astype(np.float64)
    centered_ND = flat_ND - flat_ND.mean(axis=0)
    values, vectors = np.linalg.eigh(centered_ND.T @ centered_ND)
    scores_N3 = np.zeros((len(flat_ND), 3))
    count = min(3, len(values))
    scores_N3[:, :count] = centered_ND @ vectors[:, ::-1][:, :count]
    scores_N3 *= np.where((scores_N3**3).sum(axis=0) < 0, -1, 1)
    varies = scores_N3.std(axis=0) > 1e-6 * np.sqrt(max(values[-1], 0) / len(flat_ND))
    return _as_bytes(scores_N3 * varies).reshape(*features_BHWD.shape[:3], 3)


def _as_bytes(scores_N3: np.ndarray) -> np.ndarray:
    low, high = np.percentile(scores_N3, TAILS, axis=0)
    flat = high == low
    share_N3 = np.where(flat, 0.5, (scores_N3 - low) / np.where(flat, 1, high - low))
    return np.round(255 * share_N3.clip(0, 1)).astype(np.uint8)
