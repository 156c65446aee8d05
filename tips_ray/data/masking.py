"""Which patches of a global crop are masked, a pure function of the sample's key. B samples, L patches."""

import numpy as np

from tips_ray.data.augment import derived

_MASK = 1999  # salt apart from those of crops (views) and of the networks' passes


def patch_masks(sample_key_B: np.ndarray, num_patches: int, ratio: float) -> np.ndarray:
    """Boolean [B, L], True = masked: exactly round(ratio * L) of each row, uniformly drawn without replacement.

    Every patch has a random number of its own, and those with the smallest are masked.
    """
    patch_key_BL = derived(derived(sample_key_B, _MASK)[:, None], np.arange(num_patches))
    order_BL = patch_key_BL.argsort(axis=1, kind="stable")
    mask_BL = np.zeros(patch_key_BL.shape, bool)
    np.put_along_axis(mask_BL, order_BL[:, : round(ratio * num_patches)], True, axis=1)
    return mask_BL


def patch_mask(sample_key: int, num_patches: int, ratio: float) -> np.ndarray:
    """The mask of one sample, [L]."""
    return patch_masks(np.array([sample_key], np.int64), num_patches, ratio)[0]
