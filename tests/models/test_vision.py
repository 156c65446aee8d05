import pytest
import torch
from torch import Tensor

from tips_ray.models import ImageEncoder, dense_features, image_encoder
from tips_ray.models.vision import View

PARAMETERS = {"S": 21_924_480, "B": 86_316_288, "L": 304_016_384, "So400m": 413_393_904, "g": 1_135_952_384}


def _small(**sizes) -> ImageEncoder:
    """An encoder with four patches a side; every parameter is changed, so that no initial zero hides an error."""
    torch.manual_seed(0)
    encoder = image_encoder(
        "S", **{"width": 32, "depth": 2, "num_heads": 2, "ffn_hidden": 64, "image_size_px": 56, **sizes}
    )
    for parameter in encoder.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return encoder.double()


def _images(batch: int, height: int, width: int, seed: int = 0) -> Tensor:
    return torch.rand(batch, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("variant", "expected"), PARAMETERS.items())
def test_parameter_counts_are_the_published_ones_to_the_digit(variant, expected):
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in image_encoder(variant).parameters()) == expected


def test_patches_start_around_mid_grey_with_the_variance_of_pixels_from_minus_one_to_one():
    torch.manual_seed(0)
    embed = image_encoder("S", depth=1).patch_embed
    assert embed(torch.full((1, 3, 14, 14), 0.5)).abs().max() < 1e-5
    white_D = embed(torch.ones(1, 3, 14, 14)).flatten()
    assert abs(white_D.std() - 1) < 0.15  # 588 weights of variance 1 / 588, each times 1


def test_packed_views_equal_separate_passes():
    encoder, mask = _small(), torch.rand(2, 16) < 0.5
    views = [
        View(_images(2, 56, 56)),
        View(_images(2, 56, 56), mask),
        View(_images(6, 28, 28)),
        View(_images(1, 14, 42)),
    ]
    for packed, view in zip(encoder.forward_views(views), views, strict=True):
        torch.testing.assert_close(packed, encoder(view.images_BCHW, view.patch_mask_BL), atol=1e-12, rtol=0)


def test_a_masked_patch_hides_its_pixels_and_a_visible_one_shows_them():
    encoder, images, mask = _small(), _images(1, 56, 56), torch.zeros(1, 16, dtype=torch.bool)
    mask[0, 5] = True  # second row, second column
    changed = images.clone()
    changed[:, :, 14:28, 14:28] = 0.5
    assert torch.equal(encoder(images, mask).cls_web_BD, encoder(changed, mask).cls_web_BD)
    assert not torch.equal(encoder(images, ~mask).cls_web_BD, encoder(changed, ~mask).cls_web_BD)


def test_the_two_cls_tokens_differ_and_patches_are_row_major():
    encoder = _small(depth=1)
    images = _images(1, 56, 28)
    features = encoder(images)
    assert not torch.allclose(features.cls_web_BD, features.cls_synthetic_BD)
    assert dense_features(encoder, images, "last").shape == (1, 4, 2, 32)
    torch.testing.assert_close(dense_features(encoder, images, "last")[0, 3, 1], features.patches_BLD[0, 7])


def test_drop_path_is_keyed_by_sample_and_not_by_the_batch():
    encoder, images = _small(drop_path_rate=0.5).train(), _images(8, 56, 56)
    keys = torch.arange(8) * 1_000_003
    whole = encoder.forward_views([View(images, key_B=keys)])[0].patches_BLD
    halves = [
        encoder.forward_views([View(images[part], key_B=keys[part])])[0].patches_BLD for part in (slice(4), slice(4, 8))
    ]
    torch.testing.assert_close(whole, torch.cat(halves), atol=1e-12, rtol=0)
    assert not torch.allclose(whole, encoder(images).patches_BLD)
    assert torch.equal(
        encoder.eval().forward_views([View(images, key_B=keys)])[0].patches_BLD, encoder(images).patches_BLD
    )


def test_a_view_without_keys_keeps_all_branches_beside_one_that_drops_some():
    encoder, images = _small(drop_path_rate=0.5).train(), _images(8, 56, 56)
    keys = torch.arange(8) * 1_000_003
    for views in ([View(images, key_B=keys), View(images)], [View(images), View(images, key_B=keys)]):
        found = dict(zip([view.key_B is None for view in views], encoder.forward_views(views), strict=True))
        torch.testing.assert_close(found[True].patches_BLD, encoder(images).patches_BLD, atol=1e-12, rtol=0)
        alone = encoder.forward_views([View(images, key_B=keys)])[0]
        torch.testing.assert_close(found[False].patches_BLD, alone.patches_BLD, atol=1e-12, rtol=0)
        assert not torch.allclose(found[False].patches_BLD, found[True].patches_BLD)


def test_drop_path_keeps_the_expected_value_of_a_branch():
    """One block, branch kept with probability 1 - rate and scaled by its inverse: the mean over keys is the branch."""
    from tips_ray.models.layers import drop_path_factors

    factors = drop_path_factors(torch.arange(20_000), torch.ones(20_000, dtype=torch.long), 0.3, 1)
    for factor in factors[0]:
        assert factor.unique().tolist() == pytest.approx([0, 1 / 0.7])
        assert factor.mean().item() == pytest.approx(1, abs=0.02)
    assert not torch.equal(*factors[0])


def test_reset_restores_every_parameter_from_garbage():
    encoder = image_encoder("S", width=32, depth=1, num_heads=2, ffn_hidden=64, image_size_px=28)
    for parameter in encoder.parameters():
        parameter.data.fill_(float("nan"))
    encoder.reset_parameters()
    assert all(parameter.isfinite().all() for parameter in encoder.parameters())


@pytest.mark.parametrize(
    ("images", "mask", "message"),
    [
        (
            torch.rand(1, 3, 57, 56),
            None,
            r"\(1, 3, 57, 56\): height and width must be multiples of the patch size \(14\)",
        ),
        (torch.rand(3, 56, 56), None, r"\(3, 56, 56\) must have shape \(batch, 3, height, width\)"),
        (torch.rand(1, 4, 56, 56), None, r"\(1, 4, 56, 56\) must have shape"),
        (
            torch.zeros(1, 3, 56, 56, dtype=torch.uint8),
            None,
            r"torch.uint8; it must be floating point with values in \[0, 1\]",
        ),
        (torch.rand(1, 3, 56, 56) * 255, None, r"spans \[.*\]; values must lie in \[0, 1\]"),
        (torch.rand(1, 3, 56, 56) * 4 - 2, None, "without mean/std normalisation"),
        (
            torch.rand(1, 3, 56, 56),
            torch.zeros(1, 15, dtype=torch.bool),
            r"patch_mask_BL \(1, 15\).*\(1, 16\).*4x4 patches",
        ),
        (torch.rand(1, 3, 56, 56), torch.zeros(1, 16), r"patch_mask_BL \(1, 16\) torch.float32 must be boolean"),
    ],
)
def test_wrong_input_is_named_with_its_shape_and_the_rule(images, mask, message):
    with pytest.raises(ValueError, match=message):
        _small().float()(images, mask)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"width": 30, "num_heads": 4}, r"width \(30\) must be divisible by num_heads \(4\)"),
        ({"image_size_px": 57}, r"image_size_px \(57\) must be divisible by patch_size_px \(14\)"),
        ({"hidden": 3}, "hidden"),
    ],
)
def test_wrong_sizes_are_named(sizes, message):
    with pytest.raises(ValueError, match=message):
        image_encoder("S", **sizes)


def test_an_unknown_variant_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"variant \('H'\) must be one of S, B, L, So400m, g"):
        image_encoder("H")
