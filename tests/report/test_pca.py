"""Patch features as colours. B images, H x W patches, D channels."""

import numpy as np
import pytest

from tips_ray.report import pca_rgb


def _features(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Latents and features: three independent latents of falling variance in 16 channels, with a little noise."""
    rng = np.random.default_rng(seed)
    latents_BHW3 = rng.exponential(size=(4, 8, 8, 3)) * (5, 2, 1)  # skewed: large values are rare
    directions_3D = np.linalg.qr(rng.normal(size=(16, 3)))[0].T
    return latents_BHW3, latents_BHW3 @ directions_3D + 0.01 * rng.normal(size=(4, 8, 8, 16))


def test_the_three_latents_become_red_green_and_blue():
    latents, features = _features()
    colours = pca_rgb(features)
    assert colours.shape == (4, 8, 8, 3) and colours.dtype == np.uint8
    for channel in range(3):
        inner = (colours[..., channel] > 0) & (colours[..., channel] < 255)
        assert np.corrcoef(latents[..., channel][inner], colours[..., channel][inner])[0, 1] > 0.95


def test_the_colours_do_not_depend_on_rotation_scale_offset_or_sign():
    _, features = _features()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))[0]
    moved = -7 * features @ rotation + 100
    np.testing.assert_allclose(pca_rgb(moved).astype(int), pca_rgb(features).astype(int), atol=1)


def test_a_small_object_is_brighter_than_its_ground():
    features = np.zeros((1, 10, 10, 8))
    features[0, 4:6, 4:6] = -1
    colours = pca_rgb(features)[0, ..., 0]
    assert colours[4:6, 4:6].min() == 255 and colours[0].max() == 0


def test_equal_features_in_two_images_have_one_colour():
    _, features = _features()
    features[1, 2, 3] = features[0, 5, 6]
    colours = pca_rgb(features)
    assert (colours[1, 2, 3] == colours[0, 5, 6]).all()


def test_one_wild_patch_does_not_take_the_contrast():
    _, features = _features()
    plain = pca_rgb(features)
    rows = features.reshape(-1, 16)
    features[0, 0, 0] = 5 * rows[np.linalg.norm(rows, axis=1).argmax()]
    assert abs(pca_rgb(features)[..., 0].std() - plain[..., 0].std()) < 10


@pytest.mark.parametrize("channels", [1, 2, 16])
def test_features_without_variance_are_grey(channels):
    assert (pca_rgb(np.ones((2, 3, 3, channels), np.float16)) == 128).all()
