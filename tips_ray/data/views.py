"""Ordered rows -> training rows: crops, masks and token ids, with the reason where a row cannot be used.

B rows of a block, V local crops, A synthetic captions per image, L patches, T tokens; columns as in docs/formats.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np

from tips_ray.config.run import RunConfig, ViewsConfig
from tips_ray.data.augment import Box, crop_box, crop_draws, is_flipped, patch_masks, resized, shrunk
from tips_ray.data.columns import TRAINING_DTYPES
from tips_ray.data.decode import BadImage, open_image, reduction_for

_GLOBAL, _FIRST_LOCAL = 1000, 1001  # salts of the crops, apart from those of the mask and of the networks' passes

Tokenizer = Callable[[list[str], int], Any]
"""(texts, max_tokens) -> integers [texts, at most max_tokens] as an array or CPU tensor, 0 = padding."""


@dataclass(frozen=True)
class RowSettings:
    """All that a training row depends on besides the source row and the tokenizer."""

    views: ViewsConfig
    patch_size_px: int
    max_image_bytes: int
    max_image_pixels: int
    missing: Literal["invalid", "empty", "other"]
    """A row without one of its captions is invalid, gets an empty text, or gets the other caption."""
    max_tokens: int
    synthetic_captions: int
    """A, equal in all rows of a run; an image's captions beyond it are not used."""

    @property
    def num_patches(self) -> int:
        return (self.views.global_px // self.patch_size_px) ** 2


def row_settings(config: RunConfig, synthetic_captions: int) -> RowSettings:
    """What a run's config says about training rows."""
    data, captions = config.data, config.captions
    return RowSettings(
        config.views,
        config.image.patch_size_px,
        data.max_image_bytes,
        data.max_image_pixels,
        captions.missing,
        config.text.max_tokens,
        synthetic_captions,
    )


def training_row(row: Mapping[str, Any], settings: RowSettings, tokenizer: Tokenizer) -> dict[str, Any]:
    """One row of `training_rows`."""
    return {name: column[0] for name, column in training_rows([row], settings, tokenizer).items()}


def training_rows(
    rows: Sequence[Mapping[str, Any]], settings: RowSettings, tokenizer: Tokenizer
) -> dict[str, np.ndarray]:
    """The columns of a whole block. A row's result depends on the row alone, not on the others of its block.

    A row that has an `error`, lacks a caption or has a bad image keeps its place: `valid` False, `reject` says why,
    images and ids are zero. Its mask is drawn like any other, so that every batch masks equally many patches.
    """
    columns = _empty_columns(rows, settings)
    captions = _captions(rows, settings, tokenizer)
    draws_BVS = crop_draws(columns["sample_key"][:, None], _GLOBAL + np.arange(1 + settings.views.local_crops))
    rejects = []
    for place, row in enumerate(rows):
        reject = row["error"] or _image_reject(row["image"], draws_BVS[place].tolist(), settings, columns, place)
        if not reject and captions[place].reject:  # the image's own fault comes first: no captioner can fix it
            reject = captions[place].reject
            columns["global_crops"][place] = columns["local_crops"][place] = 0
        if not reject:
            columns["web_ids"][place] = captions[place].web_ids_T
            columns["synthetic_ids"][place] = captions[place].synthetic_ids_AT
        rejects.append(reject)
    columns["reject"] = np.array(rejects, np.str_)
    columns["valid"] = columns["reject"] == ""
    return {name: columns[name] for name in TRAINING_DTYPES}


class _Captions(NamedTuple):
    web_ids_T: np.ndarray
    synthetic_ids_AT: np.ndarray
    reject: str


def _empty_columns(rows: Sequence[Mapping[str, Any]], settings: RowSettings) -> dict[str, np.ndarray]:
    views, images, tokens = settings.views, len(rows), settings.max_tokens
    shapes = {
        "global_crops": (images, 3, views.global_px, views.global_px),
        "local_crops": (images, views.local_crops, 3, views.local_px, views.local_px),
        "web_ids": (images, tokens),
        "synthetic_ids": (images, settings.synthetic_captions, tokens),
    }
    columns = {name: np.zeros(shape, TRAINING_DTYPES[name]) for name, shape in shapes.items()}
    for name in ("position", "step", "sample_id", "sample_key", "key"):
        columns[name] = np.array([row[name] for row in rows], TRAINING_DTYPES[name])
    columns["patch_mask"] = patch_masks(columns["sample_key"], settings.num_patches, views.mask_ratio)
    return columns


def _image_reject(
    image: bytes, draws_VS: list[list[float]], settings: RowSettings, columns: dict[str, np.ndarray], place: int
) -> str:
    """Fill the crops at `place`; the reason when the image is bad, empty when it is not."""
    try:
        opened = open_image(image, settings.max_image_bytes, settings.max_image_pixels)
        boxes, sides = _crop_boxes(draws_VS, opened.height, opened.width, settings.views)
        pixels = opened.pixels(reduction_for(_zoom_out(boxes, sides)))
    except BadImage as error:
        return str(error)
    outs = [columns["global_crops"][place], *columns["local_crops"][place]]
    for draws, box, side, out in zip(draws_VS, boxes, sides, outs, strict=True):
        box = shrunk(box, opened.height, opened.width, *pixels.shape[:2])
        resized(pixels, box, side, is_flipped(draws, settings.views.flip), out)
    return ""


def _crop_boxes(
    draws_VS: list[list[float]], height: int, width: int, views: ViewsConfig
) -> tuple[list[Box], list[int]]:
    """The global crop's box and side, then the local ones'; all are cut from the whole image."""
    scales = [views.global_scale] + [views.local_scale] * views.local_crops
    boxes = [crop_box(draws, height, width, scale) for draws, scale in zip(draws_VS, scales, strict=True)]
    return boxes, [views.global_px] + [views.local_px] * views.local_crops


def _zoom_out(boxes: list[Box], sides: list[int]) -> float:
    """The smallest factor by which any crop is shrunk."""
    return min(min(box.height, box.width) / side for box, side in zip(boxes, sides, strict=True))


def _captions(rows: Sequence[Mapping[str, Any]], settings: RowSettings, tokenizer: Tokenizer) -> list[_Captions]:
    """Token ids of every row, from one call of the tokenizer."""
    texts = [[row["web_caption"] or "", *_synthetic(row, settings)] for row in rows]
    ids_NT = _token_ids([text for row_texts in texts for text in row_texts], settings.max_tokens, tokenizer)
    starts = np.cumsum([0, *map(len, texts)])
    pairs = zip(starts[:-1], starts[1:], strict=True)
    return [_row_captions(ids_NT[start], ids_NT[start + 1 : stop], settings) for start, stop in pairs]


def _synthetic(row: Mapping[str, Any], settings: RowSettings) -> list[str]:
    captions = row["synthetic_captions"]
    present = [caption for caption in (() if captions is None else captions) if caption and caption.strip()]
    return present[: settings.synthetic_captions]


def _token_ids(texts: list[str], max_tokens: int, tokenizer: Tokenizer) -> np.ndarray:
    """Int32 [texts, T]; a blank text gives zeros, whatever the tokenizer makes of it."""
    ids_NT = np.zeros((len(texts), max_tokens), np.int32)
    filled = [number for number, text in enumerate(texts) if text.strip()]
    if filled:
        found = np.asarray(tokenizer([texts[number] for number in filled], max_tokens))
        ids_NT[filled, : found.shape[1]] = found
    return ids_NT


def _row_captions(web_ids_T: np.ndarray, synthetic_ids_NT: np.ndarray, settings: RowSettings) -> _Captions:
    """Captions without a token count as missing; the remaining synthetic ones come first, then rows of zeros."""
    synthetic_ids_NT = synthetic_ids_NT[synthetic_ids_NT.any(axis=1)]
    if settings.missing == "other" and not web_ids_T.any():
        web_ids_T = synthetic_ids_NT[0] if len(synthetic_ids_NT) else web_ids_T
    if settings.missing == "other" and not len(synthetic_ids_NT):
        synthetic_ids_NT = web_ids_T[None]
    padded_AT = np.zeros((settings.synthetic_captions, settings.max_tokens), np.int32)
    padded_AT[: len(synthetic_ids_NT)] = synthetic_ids_NT
    missing = [kind for kind, ids in (("web", web_ids_T), ("synthetic", padded_AT)) if not ids.any()]
    reject = "" if settings.missing == "empty" or not missing else f"no caption: {' and '.join(missing)}"
    return _Captions(web_ids_T, padded_AT, reject)
