import math

import numpy as np
import torch
from torchvision.transforms import RandomResizedCrop

from tips_ray import keyed
from tips_ray.data.augment import (
    CROP_DRAWS,
    Box,
    crop_box,
    crop_draws,
    derived,
    is_flipped,
    resized,
    shrunk,
    uniform,
)

KEYS = np.random.default_rng(0).integers(-(2**63), 2**63 - 1, 2000)
SCALE = (0.32, 1.0)


def _ramp(height: int = 200, width: int = 250) -> np.ndarray:
    """Red is the column, green the row."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([columns, rows, np.zeros_like(rows)], axis=2).astype(np.uint8)


def _view(image: np.ndarray, box: Box, side: int, flip: bool = False) -> np.ndarray:
    out = np.zeros((3, side, side), np.uint8)
    resized(image, box, side, flip, out)
    return out.astype(int)


def test_draws_equal_those_on_tensors():
    for salt in (-1, 0, 1, 1000, 2**40):
        np.testing.assert_array_equal(derived(KEYS, salt), keyed.derived(torch.from_numpy(KEYS), salt).numpy())
        np.testing.assert_array_equal(uniform(KEYS, salt), keyed.uniform(torch.from_numpy(KEYS), salt).numpy())


def test_boxes_lie_inside_and_have_area_and_aspect_in_range():
    for height, width in ((300, 400), (1000, 600), (224, 224)):
        for draws in crop_draws(KEYS, 3).tolist():
            top, left, box_height, box_width = crop_box(draws, height, width, SCALE)
            assert 0 <= top <= height - box_height and 0 <= left <= width - box_width
            slack = 1 + 0.5 / box_height + 0.5 / box_width  # both sides are rounded
            assert SCALE[0] / slack <= box_height * box_width / (height * width) <= SCALE[1] * slack
            assert 3 / 4 / slack <= box_width / box_height <= 4 / 3 * slack


def test_boxes_are_distributed_as_torchvisions():
    torch.manual_seed(0)
    image = torch.empty(3, 300, 500)
    theirs = np.array([RandomResizedCrop.get_params(image, list(SCALE), [3 / 4, 4 / 3]) for _ in KEYS])
    ours = np.array([crop_box(draws, 300, 500, SCALE) for draws in crop_draws(KEYS, 0).tolist()])
    error = theirs.std(axis=0) * math.sqrt(2 / len(KEYS))
    assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
    np.testing.assert_allclose(ours.std(axis=0), theirs.std(axis=0), rtol=0.08)


def test_half_of_the_crops_are_flipped_wherever_they_lie_and_however_large_they_are():
    draws = crop_draws(KEYS, 0).tolist()
    flipped = np.array([is_flipped(row, 0.5) for row in draws])
    boxes = np.array([crop_box(row, 300, 500, SCALE) for row in draws])
    bound = 4 / math.sqrt(len(KEYS))
    assert abs(2 * flipped.mean() - 1) < bound
    assert (np.abs(np.corrcoef(flipped, boxes.T)[0, 1:]) < bound).all()


def test_a_crop_that_never_fits_is_centred_with_the_nearest_aspect():
    draws = [1.0 - 2**-24] * CROP_DRAWS  # aspect 4 / 3 and the whole area, each time
    assert crop_box(draws, 100, 1000, (1.0, 1.0)) == Box(0, 433, 100, 133)
    assert crop_box(draws, 1000, 90, (1.0, 1.0)) == Box(440, 0, 120, 90)
    assert crop_box(draws, 100, 100, (1.0, 1.0)) == Box(0, 0, 100, 100)


def test_the_smallest_and_longest_images_have_a_box():
    for draws in crop_draws(KEYS[:200], 0).tolist():
        assert crop_box(draws, 1, 1, SCALE) == Box(0, 0, 1, 1)
        for height, width in ((1, 9000), (9000, 1), (2, 3)):
            box = crop_box(draws, height, width, (0.05, 0.32))
            assert box.height >= 1 and box.width >= 1
            assert box.top + box.height <= height and box.left + box.width <= width


def test_a_key_has_the_same_crop_for_ever():
    draws = crop_draws(np.array([12345]), 1000)[0].tolist()
    assert crop_box(draws, 375, 500, SCALE) == Box(7, 48, 329, 431)  # a change breaks every run's resume


def test_crops_of_one_key_differ_between_salts():
    draws = crop_draws(KEYS[:1, None], np.arange(50))
    assert draws.shape == (1, 50, CROP_DRAWS) and len(np.unique(draws[0, :, 0])) == 50


def test_flips_come_as_often_as_asked():
    draws = crop_draws(KEYS, 5).tolist()
    for probability in (0.0, 0.3, 1.0):
        assert abs(np.mean([is_flipped(row, probability) for row in draws]) - probability) < 0.04


def test_a_view_shows_its_box():
    red, green, _ = _view(_ramp(), Box(10, 20, 100, 120), 60)
    assert abs(red.mean() - (20 + 119 / 2)) < 0.6 and abs(green.mean() - (10 + 99 / 2)) < 0.6
    assert abs(red[:, 0].mean() - 20.5) < 1 and abs(red[:, -1].mean() - 138.5) < 1
    assert abs(green[0].mean() - 10.5) < 1 and abs(green[-1].mean() - 108.5) < 1


def test_a_flip_mirrors_left_and_right():
    box = Box(3, 5, 70, 90)
    np.testing.assert_array_equal(_view(_ramp(), box, 28, flip=True), _view(_ramp(), box, 28)[:, :, ::-1])


def test_a_box_of_the_views_size_is_copied():
    view = _view(_ramp(), Box(7, 9, 28, 28), 28)
    np.testing.assert_array_equal(view, _ramp()[7:35, 9:37].transpose(2, 0, 1))


def test_shrinking_averages():
    stripes = np.zeros((80, 80, 3), np.uint8)
    stripes[:, ::4] = 255  # without antialiasing a view of a quarter of the size misses every stripe
    assert np.abs(_view(stripes, Box(0, 0, 80, 80), 20)[:, :, 2:-2] - 255 / 4).max() < 2


def test_pixels_do_not_depend_on_threads():
    image, threads = np.random.default_rng(0).integers(0, 256, (300, 400, 3), np.uint8), torch.get_num_threads()
    views = []
    for number in (1, 3):
        torch.set_num_threads(number)
        views.append(_view(image, Box(10, 20, 250, 300), 98))
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(*views)


def test_a_box_in_a_half_size_image_covers_the_same_part():
    assert shrunk(Box(100, 40, 400, 200), 601, 801, 301, 401) == Box(50, 20, 200, 100)
    assert shrunk(Box(0, 0, 601, 801), 601, 801, 301, 401) == Box(0, 0, 301, 401)
    assert shrunk(Box(1, 2, 3, 4), 7, 9, 7, 9) == Box(1, 2, 3, 4)
