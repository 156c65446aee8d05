"""A folder of this machine for a checkpoint's files on their way; none stays for good, however its process ends."""

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tips_ray import storage

PREFIX, HELD = "tips_ray-checkpoint-", ".held"
"""Of the folders, and the file that is locked in each for as long as its process lives."""


@contextmanager
def held_folder() -> Iterator[Path]:
    """A new one, empty; what processes that were killed have left on this machine goes first.

    Raises:
        StorageError: it cannot be made.
    """
    _sweep()
    place = tempfile.gettempdir()
    made = Path(storage.attempt(place, lambda: tempfile.mkdtemp(prefix="tips_ray-new-")))
    own = made.with_name(f"{PREFIX}{made.name}")
    try:
        with storage.attempt(place, lambda: Path(made, HELD).open("w")) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            made.rename(own)  # from now on others find it, and find it locked
            storage.attempt(place, lambda: Path(own, "files").mkdir())
            yield own / "files"
    finally:
        for folder in (made, own):
            shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{HELD}"):
        with suppress(OSError), held.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its owner lives
            shutil.rmtree(held.parent, ignore_errors=True)
