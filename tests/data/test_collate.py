import warnings

import numpy as np
import torch

from tips_ray.batch import short_length
from tips_ray.data.collate import _short_texts, batch_from


def _columns(images: int = 2, crops: int = 3, tokens: int = 20, used: int = 9) -> dict[str, np.ndarray]:
    """Random crops, captions of `used` tokens, the second image invalid."""
    numbers = np.random.default_rng(0)
    ids = np.arange(tokens) < used
    return {
        "global_crops": numbers.integers(0, 256, (images, 3, 28, 28), np.uint8),
        "local_crops": numbers.integers(0, 256, (images, crops, 3, 14, 14), np.uint8),
        "patch_mask": np.array([[True, False, False, True], [False, False, True, True]]),
        "web_ids": np.tile(ids, (images, 1)).astype(np.int32),
        "synthetic_ids": np.tile(ids, (images, 2, 1)).astype(np.int32),
        "valid": np.array([True, False]),
        "sample_key": np.array([-5, 2**62], np.int64),
    }


def test_crops_are_the_columns_own_memory():
    columns = _columns()
    batch = batch_from(columns)
    columns["global_crops"][1, 2, 3, 4] = 77
    columns["local_crops"][1, 2, 0, 3, 4] = 78
    assert batch.global_crops_BCHW[1, 2, 3, 4] == 77
    assert batch.local_crops_VBCHW.shape == (3, 2, 3, 14, 14) and batch.local_crops_VBCHW[2, 1, 0, 3, 4] == 78


def test_mask_key_and_valid_are_as_in_the_columns():
    batch = batch_from(_columns())
    assert batch.masked_index_M.tolist() == [0, 3, 6, 7] and batch.patch_mask_BL.dtype == torch.bool
    assert batch.key_B.tolist() == [-5, 2**62] and batch.valid_B.tolist() == [True, False]


def test_ids_are_trimmed_to_a_multiple_of_eight():
    for tokens, used, left in ((20, 8, 8), (20, 9, 16), (20, 17, 20), (64, 1, 8), (64, 0, 8), (12, 12, 12), (5, 1, 5)):
        batch = batch_from(_columns(tokens=tokens, used=used))
        assert batch.web_ids_BT.shape == (2, left) and batch.synthetic_ids_BAT.shape == (2, 2, left)
        assert batch.web_ids_BT.sum() == 2 * used and batch.synthetic_ids_BAT.sum() == 4 * used


def test_the_longest_caption_of_either_kind_counts():
    for name in ("web_ids", "synthetic_ids"):
        columns = _columns(used=3)
        columns[name][-1, ..., 10] = 5
        batch = batch_from(columns)
        assert batch.web_ids_BT.shape[-1] == batch.synthetic_ids_BAT.shape[-1] == 16
        assert (batch.web_ids_BT if name == "web_ids" else batch.synthetic_ids_BAT).max() == 5


def _short(*used: int, tokens: int = 64, captions: int = 1) -> list[int]:
    """Short ones of web and synthetic captions of `used` tokens each, all captions of an image alike but the last."""
    ids_NT = (np.arange(tokens) < np.array(used)[:, None]).astype(np.int32)
    web_BT, synthetic_BT = np.split(ids_NT, 2)
    synthetic_BAT = np.stack([synthetic_BT * (caption == captions - 1) for caption in range(captions)], axis=1)
    return list(_short_texts(web_BT, synthetic_BAT, tokens))


def test_texts_of_at_most_half_the_length_are_short():
    assert _short(32, 33, 1, 64) == [0, 2]
    assert _short(32, 33, 1, 64, captions=2) == [0, 2]  # the other caption of the last image is empty
    assert _short(8, 9, 16, 17, tokens=24) == [0, 1, 2]  # 12 places, rounded up to 16
    assert _short(3, 8, 1, 1, tokens=8) == []  # nothing is shorter than 8
    assert [short_length(tokens) for tokens in (64, 24, 16, 12, 8, 5)] == [32, 16, 8, 8, 8, 5]


def test_the_number_of_short_texts_is_one_of_five():
    """31 of 64 texts are short: multiples of 16 are taken."""
    assert _short(*[20] * 31, *[60] * 33) == list(range(16))
    assert len(batch_from(_columns(tokens=20, used=9)).short_texts_S) == 0


def test_a_run_without_local_crops_has_an_empty_dimension():
    assert batch_from(_columns(crops=0)).local_crops_VBCHW.shape == (0, 2, 3, 14, 14)


def test_read_only_columns_are_taken_without_a_warning():
    columns = _columns()
    for column in columns.values():
        column.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(batch_from(columns).to("cpu", torch.float64)) == 2
