import io

import numpy as np
import pytest
from bad_input.images import CATALOGUE, QUADRANTS, encoded, jpeg, quadrants
from PIL import Image

from tips_ray.data.decode import BadImage, decode, open_image, reduction_for

LIMITS = (2**20, 10**6)


def _large(form: str) -> bytes:
    """Quadrants of 200 x 300 pixels each."""
    corners = np.array(QUADRANTS, np.uint8).reshape(2, 2, 3)
    return encoded(corners.repeat(200, axis=0).repeat(300, axis=1), form)


def test_pixels_equal_pillows_own():
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), np.uint8)
    for file in (encoded(noise, "JPEG"), encoded(noise, "PNG"), jpeg(progressive=True)):
        np.testing.assert_array_equal(decode(file, *LIMITS), np.asarray(Image.open(io.BytesIO(file)).convert("RGB")))


def test_limits_are_inclusive():
    file, (height, width) = encoded(quadrants(), "PNG"), quadrants().shape[:2]
    assert decode(file, len(file), height * width).shape == (height, width, 3)
    for limits in ((len(file) - 1, height * width), (len(file), height * width - 1)):
        with pytest.raises(BadImage, match="too large"):
            decode(file, *limits)


@pytest.mark.heavy
def test_a_limit_above_pillows_own_is_kept():
    wide = encoded(Image.new("1", (200_000, 1000)), "PNG")  # 200 million pixels, above 2 x 89 million
    assert open_image(wide, 2**20, 10**9).width == 200_000


def test_the_header_alone_decides_on_size():
    file = encoded(np.random.default_rng(0).integers(0, 256, (64, 96, 3), np.uint8), "PNG")
    without_pixels = file[:200]
    opened = open_image(without_pixels, *LIMITS)
    assert (opened.height, opened.width) == (64, 96)
    with pytest.raises(BadImage, match="truncated"):
        opened.pixels()


def test_a_jpeg_is_decoded_no_smaller_than_asked():
    for smallest, sides in ((None, (400, 600)), (201, (400, 600)), (200, (200, 300)), (99, (100, 150)), (1, (50, 75))):
        pixels = decode(_large("JPEG"), *LIMITS, smallest_side_px=smallest)
        assert pixels.shape == (*sides, 3)
        corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int)
        assert np.abs(corners - np.array(QUADRANTS)).max() <= 6


def test_a_turned_jpeg_is_decoded_small_and_upright():
    file = next(case.make() for case in CATALOGUE if case.name == "exif orientation 6")
    pixels = open_image(file, *LIMITS).pixels(reduction=2)
    assert pixels.shape == (32, 48, 3)
    assert np.abs(pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(int) - np.array(QUADRANTS)).max() <= 6


def test_the_sides_known_ahead_are_those_of_the_pixels():
    for case in CATALOGUE:
        if case.corners:
            opened = open_image(case.make(), 2**20, 10**7)
            assert (opened.height, opened.width) == case.size == opened.pixels().shape[:2]


def test_other_formats_are_decoded_whole():
    assert decode(_large("PNG"), *LIMITS, smallest_side_px=1).shape == (400, 600, 3)


def test_a_reduction_leaves_something_to_shrink():
    pairs = ((0.5, 1), (1.99, 1), (2.0, 2), (3.99, 2), (4.0, 4), (7.9, 4), (8.0, 8), (100.0, 8))
    assert all(reduction_for(zoom_out) == reduction for zoom_out, reduction in pairs)


def test_a_reason_can_be_counted_and_its_detail_read():
    with pytest.raises(BadImage) as caught:
        decode(b"GIF9", *LIMITS)
    assert caught.value.reason == "not an image" and "GIF9" in caught.value.detail
    assert str(caught.value) == f"not an image: {caught.value.detail}"


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_whole_jpeg_files_have_the_pixels_that_pillow_gives(mode, reduction):
    noise = np.random.default_rng(0).integers(0, 256, (53, 37, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(buffer, "JPEG", quality=90)
    with Image.open(buffer) as file:
        file.draft(None, (file.width // reduction, file.height // reduction))
        expected = np.asarray(file.convert("RGB"))
    np.testing.assert_array_equal(open_image(buffer.getvalue(), 10**6, 10**6).pixels(reduction), expected)
