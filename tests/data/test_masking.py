import numpy as np

from tips_ray.data.augment import patch_mask, patch_masks

KEYS = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 4000)


def test_every_mask_has_exactly_its_share():
    for patches, ratio, masked in ((256, 0.75, 192), (256, 0.5, 128), (9, 0.75, 7), (16, 0.0, 0), (16, 1.0, 16)):
        mask_BL = patch_masks(KEYS[:100], patches, ratio)
        assert mask_BL.dtype == np.bool_ and mask_BL.shape == (100, patches)
        assert (mask_BL.sum(axis=1) == masked).all()


def test_every_patch_is_masked_equally_often():
    share_L = patch_masks(KEYS, 64, 0.75).mean(axis=0)
    assert np.abs(share_L - 0.75).max() < 5 * (0.75 * 0.25 / len(KEYS)) ** 0.5


def test_every_pair_of_patches_is_masked_together_as_often_as_without_replacement():
    mask_BL = patch_masks(KEYS, 8, 0.75).astype(float)
    together_LL = mask_BL.T @ mask_BL / len(KEYS)
    pairs = together_LL[~np.eye(8, dtype=bool)]
    assert np.abs(pairs - 6 / 8 * 5 / 7).max() < 5 * (0.25 / len(KEYS)) ** 0.5


def test_a_mask_depends_on_its_key_alone():
    block = patch_masks(KEYS[:50], 256, 0.75)
    np.testing.assert_array_equal(block[::-1], patch_masks(KEYS[:50][::-1], 256, 0.75))
    np.testing.assert_array_equal(block[17], patch_mask(int(KEYS[17]), 256, 0.75))
    assert len(np.unique(block, axis=0)) == 50
