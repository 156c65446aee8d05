import numpy as np
import pytest
import torch
from bad_input.images import CATALOGUE, MAX_BYTES, MAX_PIXELS, encoded

from tips_ray.config import ViewsConfig, override
from tips_ray.data.collate import batch_from
from tips_ray.data.columns import TRAINING_DTYPES
from tips_ray.data.views import RowSettings, training_row, training_rows

WHOLE = (1.0, 1.0)  # in a square image, the only box of this area that fits is the whole
TOKENS, CAPTIONS = 12, 3
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
IMAGES = ("global_crops", "local_crops")


class Letters:
    """A tokenizer: the ids of a text are its letters' numbers; remembers its calls."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def __call__(self, texts: list[str], max_tokens: int) -> torch.Tensor:
        self.calls.append(texts)
        ids = [[ord(letter) - 96 for letter in text if letter.isalpha()][:max_tokens] for text in texts]
        longest = max(map(len, ids))
        return torch.tensor([row + [0] * (longest - len(row)) for row in ids]).reshape(len(texts), longest)


def _settings(missing: str = "invalid", **views) -> RowSettings:
    config = override(ViewsConfig, {"global_px": 56, "local_px": 28, "local_crops": 2}, views)
    return RowSettings(config, 14, MAX_BYTES, MAX_PIXELS, missing, TOKENS, CAPTIONS)  # pyright: ignore


def _quadrants(half: int = 60, form: str = "PNG") -> bytes:
    corners = np.array([RED, GREEN, BLUE, YELLOW], np.uint8).reshape(2, 2, 3)
    return encoded(corners.repeat(half, axis=0).repeat(half, axis=1), form)


def _row(number: int = 0, **values) -> dict:
    row = {
        "position": number,
        "step": 1,
        "sample_id": number + 7,
        "sample_key": number * 10**15 - 3,
        "key": f"p{number}",
    }
    captions = {"web_caption": "ab", "synthetic_captions": ["cde", "f"]}
    return {**row, **captions, "image": _quadrants(), "error": "", **values}


def _corners(crop: np.ndarray) -> list[tuple[int, ...]]:
    return [tuple(crop[:, y, x].tolist()) for y, x in ((1, 1), (1, -2), (-2, 1), (-2, -2))]


def test_columns_have_the_names_dtypes_and_shapes_of_the_contract():
    columns = training_rows([_row(0), _row(1)], _settings(), Letters())
    assert list(columns) == list(TRAINING_DTYPES)
    assert all(columns[name].dtype.type is dtype for name, dtype in TRAINING_DTYPES.items())
    shapes = {name: columns[name].shape[1:] for name in columns if columns[name].ndim > 1}
    ids = {"web_ids": (TOKENS,), "synthetic_ids": (CAPTIONS, TOKENS)}
    assert shapes == {"global_crops": (3, 56, 56), "local_crops": (2, 3, 28, 28), "patch_mask": (16,), **ids}
    assert columns["position"].tolist() == [0, 1] and columns["sample_id"].tolist() == [7, 8]
    assert columns["sample_key"].tolist() == [-3, 10**15 - 3] and columns["key"].tolist() == ["p0", "p1"]
    assert columns["valid"].all() and columns["patch_mask"].sum(axis=1).tolist() == [12, 12]


def test_a_crop_of_everything_shows_all_corners_in_place():
    for flip, corners in ((0.0, [RED, GREEN, BLUE, YELLOW]), (1.0, [GREEN, RED, YELLOW, BLUE])):
        row = training_row(_row(), _settings(global_scale=WHOLE, local_scale=WHOLE, flip=flip), Letters())
        for crop in (row["global_crops"], *row["local_crops"]):
            assert crop.flags.c_contiguous and _corners(crop) == corners


def test_local_crops_are_cut_from_the_image_and_not_from_the_global_crop():
    row = training_row(_row(), _settings(global_scale=(0.01, 0.02), local_scale=WHOLE, flip=0.0), Letters())
    assert _corners(row["local_crops"][0]) == [RED, GREEN, BLUE, YELLOW]
    assert len(set(_corners(row["global_crops"]))) < 4


def test_a_row_is_the_same_in_every_block():
    noise = np.random.default_rng(0).integers(0, 256, (4, 90, 120, 3), np.uint8)
    rows = [_row(number, image=encoded(noise[number], "PNG")) for number in range(4)]
    block = training_rows(rows, _settings(), Letters())
    other = training_rows([rows[2], _row(9, image=b""), rows[0]], _settings(), Letters())
    for name in TRAINING_DTYPES:
        np.testing.assert_array_equal(block[name][[2, 0]], other[name][[0, 2]])


def test_crops_differ_between_keys_and_within_a_row():
    local = training_rows([_row(0), _row(1)], _settings(), Letters())["local_crops"]
    assert (local[0] != local[1]).any() and (local[0, 0] != local[0, 1]).any()


def test_a_large_jpeg_decoded_small_gives_the_same_views():
    smooth = np.add.outer(np.linspace(0, 127, 900), np.linspace(0, 128, 1200))[..., None].repeat(3, axis=2)
    smooth[300:600, 500:900, 1] = 255
    settings = _settings(local_scale=(0.2, 0.32))  # no side below 300 px: decoded at 1/4
    views = [
        training_row(_row(4, image=encoded(smooth.astype(np.uint8), form)), settings, Letters())
        for form in ("JPEG", "PNG")
    ]
    for name in IMAGES:
        assert np.abs(views[0][name].astype(int) - views[1][name]).mean() < 1.5


def test_captions_of_a_block_are_tokenised_in_one_call():
    tokenizer = Letters()
    rows = [_row(0), _row(1, web_caption="gg", synthetic_captions=["h", " ", "i", "j", "k"])]
    columns = training_rows(rows, _settings(), tokenizer)
    assert tokenizer.calls == [["ab", "cde", "f", "gg", "h", "i", "j"]]
    assert columns["web_ids"][:, :3].tolist() == [[1, 2, 0], [7, 7, 0]]
    assert columns["synthetic_ids"][0, :, :3].tolist() == [[3, 4, 5], [6, 0, 0], [0, 0, 0]]
    assert columns["synthetic_ids"][1, :, 0].tolist() == [8, 9, 10] and columns["synthetic_ids"].sum() == 45


@pytest.mark.parametrize(
    ("web", "synthetic", "missing", "web_ids", "synthetic_ids", "reject"),
    [
        ("", ["c"], "invalid", 0, 0, "no caption: web"),
        ("a", [" "], "invalid", 0, 0, "no caption: synthetic"),
        (None, None, "invalid", 0, 0, "no caption: web and synthetic"),
        ("...", ["c"], "invalid", 0, 0, "no caption: web"),
        ("", ["c"], "empty", 0, 3, ""),
        ("a", [], "empty", 1, 0, ""),
        ("", [], "empty", 0, 0, ""),
        ("", ["c", "d"], "other", 3, 3, ""),
        ("a", ["..."], "other", 1, 1, ""),
        ("", [], "other", 0, 0, "no caption: web and synthetic"),
    ],
)
def test_a_missing_caption_is_treated_as_configured(web, synthetic, missing, web_ids, synthetic_ids, reject):
    row = _row(web_caption=web, synthetic_captions=synthetic)
    columns = training_row(row, _settings(missing), Letters())
    assert columns["web_ids"][0] == web_ids and columns["synthetic_ids"][0, 0] == synthetic_ids
    assert columns["reject"] == reject and columns["valid"] == (reject == "")
    assert [bool(columns[name].any()) for name in IMAGES] == [columns["valid"]] * len(IMAGES)


def test_captions_without_a_token_stand_behind_the_others():
    row = training_row(_row(synthetic_captions=["...", "c"]), _settings(), Letters())
    assert row["synthetic_ids"][:, 0].tolist() == [3, 0, 0]


def test_a_bad_row_keeps_its_place_and_carries_its_reason():
    bad = [case for case in CATALOGUE if case.refused]
    rows = [_row(number, image=case.make()) for number, case in enumerate(bad)]
    rows += [_row(len(bad)), _row(len(bad) + 1, error="read failed: timeout")]
    columns = training_rows(rows, _settings(), Letters())
    expected = [case.refused for case in bad] + ["", "read failed: timeout"]
    assert all(text.startswith(start or "") for text, start in zip(columns["reject"], expected, strict=True))
    assert columns["valid"].tolist() == [not reject for reject in expected]
    zero = ~columns["valid"]
    for name in (*IMAGES, "web_ids", "synthetic_ids"):
        assert not columns[name][zero].any() and columns[name][~zero].any()
    assert (columns["patch_mask"].sum(axis=1) == 12).all()


def test_every_good_file_becomes_a_valid_row():
    rows = [_row(number, image=case.make()) for number, case in enumerate(CATALOGUE) if not case.refused]
    assert training_rows(rows, _settings(), Letters())["valid"].all()


def test_rows_go_into_a_batch():
    batch = batch_from(training_rows([_row(0), _row(1, image=b"")], _settings(), Letters()))
    assert len(batch) == 2 and batch.web_ids_BT.shape == (2, 8) and batch.synthetic_ids_BAT.shape == (2, 3, 8)
    assert batch.masked_index_M.tolist() == batch.patch_mask_BL.flatten().nonzero().flatten().tolist()


def test_no_local_crops_are_possible():
    config = ViewsConfig.model_construct(**{**ViewsConfig(global_px=56, local_px=28).model_dump(), "local_crops": 0})
    settings = RowSettings(config, 14, MAX_BYTES, MAX_PIXELS, "invalid", TOKENS, CAPTIONS)
    columns = training_rows([_row(0)], settings, Letters())
    assert columns["local_crops"].shape == (1, 0, 3, 28, 28) and columns["valid"].all()
