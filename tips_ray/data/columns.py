"""Column names and dtypes of each stage: docs/formats.md in code.

Source row -> ordered row (knows its place in the run) -> training row (crops, mask, token ids).
"""

from typing import TypedDict

import numpy as np


class SourceRow(TypedDict):
    """One image with its captions as the data have it."""

    sample_id: int
    """Dense number over the whole index."""
    key: str
    """What a person finds the row by: a tar key, `path#row`, a file name."""
    image: bytes
    """Encoded image; empty where it could not be read."""
    web_caption: str
    synthetic_captions: list[str]
    error: str
    """Why the row is bad; empty when it is not."""


TRAINING_DTYPES = {
    "position": np.int64,
    "step": np.int64,
    "sample_id": np.int64,
    "sample_key": np.int64,
    "valid": np.bool_,
    "global_crops": np.uint8,
    "local_crops": np.uint8,
    "patch_mask": np.bool_,
    "web_ids": np.int32,
    "synthetic_ids": np.int32,
    "key": np.str_,
    "reject": np.str_,
}
