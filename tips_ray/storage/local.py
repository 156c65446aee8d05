"""Files of this machine or of a file system that all machines mount. Paths are absolute, errors are the system's."""

import fcntl
import glob
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from stat import S_ISDIR

from tips_ray.storage.errors import attempt
from tips_ray.storage.files import StoredFile

PREFIX, HELD = "tips_ray-checkpoint-", ".held"
"""Prefix of temporary folders, and the file that is locked in each for as long as its process lives."""


def matching(names: Iterable[str]) -> dict[str, list[StoredFile]]:
    """The files that each name stands for: a file, all below a folder, or a pattern with `*`."""
    return {name: [stat(path) for path in _paths(name)] for name in names}


def stat(path: str) -> StoredFile:
    """Size and time of change of a file."""
    found = os.stat(path)
    if S_ISDIR(found.st_mode):
        raise FileNotFoundError(path)
    return StoredFile(path, found.st_size, f"{found.st_mtime_ns:x}")


def read(path: str, start: int, stop: int | None) -> bytes:
    """Bytes [start, stop); fewer where the file ends before."""
    with open(path, "rb") as file:
        file.seek(start)
        return file.read(-1 if stop is None else max(stop - start, 0))


def write(path: str, content: bytes) -> None:
    """Replace the file in one move; a reader sees all of it or none."""
    with _written(path) as temporary:
        temporary.write_bytes(content)


def create(path: str, content: bytes) -> bool:
    """Write the file unless it is there; False if it was."""
    with _written(path, keep=False) as temporary:
        temporary.write_bytes(content)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    return True


def copy(source: str, path: str) -> None:
    """Replace the file by a copy of another in one move."""
    with _written(path) as temporary:
        shutil.copyfile(source, temporary)


def names_in(path: str, folders: bool) -> list[str]:
    """Names of the files, or of the folders, right below `path`; none where it does not exist."""
    if not os.path.isdir(path):
        return []
    with os.scandir(path) as entries:
        return [entry.name for entry in entries if entry.is_dir() == folders]


def delete(path: str) -> None:
    """Remove a file; nothing if it is not there."""
    Path(path).unlink(missing_ok=True)


def delete_folder(path: str) -> None:
    """Remove a folder and all below it; nothing if it is not there."""
    if os.path.isdir(path):
        shutil.rmtree(path)


@contextmanager
def _written(path: str, keep: bool = True) -> Iterator[Path]:
    """A hidden file beside `path` that takes its place at the end, unless an error or `keep=False` removes it."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    temporary = Path(os.path.dirname(path), f".{os.path.basename(path)}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _flush(temporary)
        if keep:
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Push the content to the device, so that a power cut cannot leave an empty file under the final name."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def _paths(name: str) -> list[str]:
    if "*" in name:
        parts = re.split(r"(\*+)", name)
        found = glob.glob("".join(part if "*" in part else glob.escape(part) for part in parts), recursive=True)
        return [path for path in found if os.path.isfile(path)]
    if os.path.isdir(name):
        walk = ((folder, file) for folder, _, files in os.walk(name) for file in files)
        return [os.path.join(folder, file) for folder, file in walk if not file.startswith(".")]
    return [name] if os.path.exists(name) else []


@contextmanager
def locked_temporary_folder() -> Iterator[Path]:
    """A new empty folder; folders that killed processes have left on this machine are deleted first.

    Raises:
        StorageError: it cannot be made.
    """
    _sweep()
    place = tempfile.gettempdir()
    made = Path(attempt(place, lambda: tempfile.mkdtemp(prefix="tips_ray-new-")))
    own = made.with_name(f"{PREFIX}{made.name}")
    try:
        with attempt(place, lambda: Path(made, HELD).open("w")) as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            made.rename(own)  # from now on others find it, and find it locked
            attempt(place, lambda: Path(own, "files").mkdir())
            yield own / "files"
    finally:
        for folder in (made, own):
            shutil.rmtree(folder, ignore_errors=True)


def _sweep() -> None:
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{HELD}"):
        with suppress(OSError), held.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its owner lives
            shutil.rmtree(held.parent, ignore_errors=True)
