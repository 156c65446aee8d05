"""The tokenizer of a run, wherever its file is."""

import tempfile
from pathlib import Path

from tips_ray import storage
from tips_ray.tokenizer import Tokenizer, load_tokenizer


def tokenizer_at(uri: str) -> Tokenizer:
    """`load_tokenizer` of a local path or of an object.

    Raises:
        ValueError: there is none, or it is damaged.
    """
    if storage.is_local(uri):
        return load_tokenizer(uri)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, uri.rsplit("/", 1)[-1])
        storage.download(uri, path)
        return load_tokenizer(path)
