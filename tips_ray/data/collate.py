"""Columns of training rows -> Batch, on the host.

B images, V local crops, A synthetic captions, L patches, M masked patches, T tokens.
"""

import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from tips_ray.batch import Batch, masked_index, short_length

_TOKEN_MULTIPLE = 8
_COUNTS_OF_SHORT = 4
"""(D) Numbers of short texts that there are beside none; each is a shape that `resources.compile` has to compile."""


def batch_from(columns: Mapping[str, np.ndarray]) -> Batch:
    """One micro-batch. Crops share the columns' memory, which must stay unchanged; ids are trimmed copies.

    T becomes the longest caption of the batch, rounded up to a multiple of 8, and texts of at most half of it are
    marked as short. Padding has no part in any number, so this changes no result; it makes the text encoder cheaper.
    """
    patch_mask_BL = _tensor(columns["patch_mask"])
    ids = columns["web_ids"], columns["synthetic_ids"]
    tokens = _tokens(*ids)
    return Batch(
        global_crops_BCHW=_tensor(columns["global_crops"]),
        local_crops_VBCHW=_tensor(columns["local_crops"]).transpose(0, 1),
        patch_mask_BL=patch_mask_BL,
        masked_index_M=masked_index(patch_mask_BL),
        web_ids_BT=_tensor(columns["web_ids"][..., :tokens]).long(),
        synthetic_ids_BAT=_tensor(columns["synthetic_ids"][..., :tokens]).long(),
        valid_B=_tensor(columns["valid"]),
        key_B=_tensor(columns["sample_key"]),
        short_texts_S=torch.from_numpy(_short_texts(*ids, tokens)),
    )


def _short_texts(web_ids: np.ndarray, synthetic_ids: np.ndarray, tokens: int) -> np.ndarray:
    """Some of the short texts, in a number of few possible ones; of several captions of an image all must be short."""
    length = short_length(tokens)
    is_long_2B = np.concatenate([web_ids[:, length:].any(axis=1), synthetic_ids[..., length:].any(axis=(1, 2))])
    found_S = np.flatnonzero(~is_long_2B) if length < tokens else np.zeros(0, np.int64)
    step = max(len(is_long_2B) // _COUNTS_OF_SHORT, 1)
    return found_S[: len(found_S) // step * step]


def _tokens(*ids: np.ndarray) -> int:
    """The longest caption in tokens, rounded up, at least one multiple and at most the columns' length."""
    used_T = np.logical_or.reduce([column.reshape(-1, column.shape[-1]).any(axis=0) for column in ids])
    longest = int(used_T.nonzero()[0].max(initial=0)) + 1
    return min(-(-longest // _TOKEN_MULTIPLE) * _TOKEN_MULTIPLE, len(used_T))


def _tensor(column: np.ndarray) -> Tensor:
    """The same memory. Ray hands out read-only arrays, about which torch warns; nothing here writes to them."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writ", UserWarning)
        return torch.from_numpy(column)
