"""What a shard is, wherever it lies: its name below the source, and a hash of its content."""

import hashlib
import os
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor

from tips_ray import storage
from tips_ray.data.sources.image_files import composed_form
from tips_ray.storage import NotFoundError, StoredFile
from tips_ray.storage.files import fixed_folder

BLOCK_BYTES = 16 << 10
"""A file of more than two blocks is known by its first block, its last one and its size."""
DIGITS = 32
READERS = 16
"""Files of a shard that are read at the same time."""


def name_below(uri: str, path: str, format: str) -> str:
    """The name of a shard below its source: the same wherever the source is copied to.

    Args:
        uri: of the source, as the config has it.
        path: of the shard.
        format: of the shard; the path of `pairs` is a folder.
    """
    root = storage.resolved(uri)
    if "{" in root or "*" in root:
        root = fixed_folder(root.replace("{", "*")).rstrip("/")
    if path == root:
        return "." if format == "pairs" else os.path.basename(path)
    return composed_form(path.removeprefix(root).removeprefix("/"))


def file_content(file: StoredFile) -> str:
    """Hash of a file's size and content, or of its first and last block where it is longer; 32 hexadecimal digits.

    Raises:
        NotFoundError: it is gone.
        StorageError: it cannot be read.
    """
    digest = hashlib.sha256(f"{file.bytes}\n".encode())
    if file.bytes <= 2 * BLOCK_BYTES:
        digest.update(storage.read_bytes(file.uri))
    else:
        digest.update(storage.read_bytes(file.uri, 0, BLOCK_BYTES))
        digest.update(storage.read_bytes(file.uri, file.bytes - BLOCK_BYTES, file.bytes))
    return digest.hexdigest()[:DIGITS]


def files_content(files: Collection[StoredFile]) -> str:
    """Hash of several files: of their contents, and of their names below the folder that holds all of them."""
    root = os.path.commonprefix([file.uri for file in files]).rpartition("/")[0]
    named = sorted((composed_form(file.uri.removeprefix(root)), file) for file in files)
    with ThreadPoolExecutor(READERS) as pool:
        contents = pool.map(_content_if_there, (file for _, file in named))
        described = repr([(name, found) for (name, _), found in zip(named, contents, strict=True)])
    return hashlib.sha256(described.encode()).hexdigest()[:DIGITS]


def _content_if_there(file: StoredFile) -> str:
    """A file that is gone, or that is a link to nothing, is a bad row, as reading will find."""
    if file.is_broken_link:
        return "gone"
    try:
        return file_content(file)
    except NotFoundError:
        return "gone"
