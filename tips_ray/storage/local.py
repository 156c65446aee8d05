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
from stat import S_ISDIR, S_ISREG

from tips_ray.storage.errors import NotFoundError, attempt
from tips_ray.storage.files import (
    BROKEN_LINK,
    NO_FILE,
    OUTPUT,
    StoredFile,
    as_regex,
    fixed_folder,
    is_hidden,
    is_output,
)

PREFIX, HELD = "tips_ray-checkpoint-", ".held"
"""Prefix of temporary folders, and the file that is locked in each for as long as its process lives."""
_ANY_DEPTH = re.compile(r"(?:^|/)\*\*(?:/|$)")


def matching(names: Iterable[str], hidden: bool) -> dict[str, list[StoredFile]]:
    """The files that each name stands for: a file, all below a folder, or a pattern with `*`."""
    found = {name: [_described(path) for path in _paths(name, hidden)] for name in names}
    return found if hidden else {name: [one for one in files if not one.is_no_file] for name, files in found.items()}


def stat(path: str) -> StoredFile:
    """Size and time of change of a file."""
    found = os.stat(path)
    if S_ISDIR(found.st_mode):
        raise FileNotFoundError(path)
    return StoredFile(path, found.st_size, f"{found.st_mtime_ns:x}" if S_ISREG(found.st_mode) else NO_FILE)


def read(path: str, start: int, stop: int | None) -> bytes:
    """Bytes [start, stop); fewer where the file ends before."""
    mode = os.stat(path).st_mode
    if not S_ISREG(mode) and not S_ISDIR(mode):  # to open a pipe would wait for its writer
        raise NotFoundError(f"{path}: there is a {NO_FILE} and no file; remove it, or write the file there")
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


def _described(path: str) -> StoredFile:
    try:
        return stat(path)
    except OSError:
        if os.path.islink(path) and not os.path.exists(path):
            return StoredFile(path, 0, BROKEN_LINK)
        raise


def _paths(name: str, hidden: bool) -> list[str]:
    """Paths of files and of broken links that `name` stands for."""
    if _ANY_DEPTH.search(name):
        wanted = as_regex(name)
        found = [path for path in _below(name, hidden) if wanted.fullmatch(path)]
    elif "*" in name:
        parts = re.split(r"(\*+)", name)
        found = glob.glob("".join(part if "*" in part else glob.escape(part) for part in parts))
        found = found if hidden else [path for path in found if not is_output(path, name, _is_marked)]
    elif os.path.isdir(name):
        return _below(name, hidden)
    else:
        return [name] if os.path.lexists(name) else []
    return [path for path in found if not os.path.isdir(path) and (hidden or not is_hidden(path, name))]


def _below(pattern: str, hidden: bool) -> list[str]:
    """All files below a folder, each once. Links to folders are followed, unless they lead back or to a place seen."""
    root = fixed_folder(pattern)
    found, seen, links = [], set(), [root] if os.path.isdir(root) else []
    while links:
        link = links.pop(0)
        waiting = [] if _leads_back(link, root) else [(link, os.path.realpath(link))]
        while waiting:
            folder, real = waiting.pop()
            if real in seen:
                continue
            seen.add(real)
            for entry in _entries(folder, None if hidden else pattern):
                if not entry.is_dir(follow_symlinks=False):
                    (links if entry.is_symlink() and os.path.isdir(entry.path) else found).append(entry.path)
                else:
                    waiting.append((entry.path, os.path.join(real, entry.name)))
        links.sort()
    return found


def _entries(folder: str, pattern: str | None) -> list[os.DirEntry[str]]:
    """What lies right in a folder; with a pattern, without what it does not name: hidden files, folders of output.

    Raises:
        StorageError: the folder cannot be read; it names it.
    """
    with attempt(folder, lambda: os.scandir(folder)) as entries:
        found = list(entries)
    if pattern is None:
        return found
    if folder != fixed_folder(pattern) and any(entry.name == OUTPUT for entry in found):
        return []
    return [entry for entry in found if not is_hidden(_slashed(entry), pattern)]


def _is_marked(folder: str) -> bool:
    return os.path.lexists(f"{folder}/{OUTPUT}")


def _slashed(entry: os.DirEntry[str]) -> str:
    """Path of an entry, with a slash at the end of a folder's."""
    return f"{entry.path}/" if not entry.is_file(follow_symlinks=False) and os.path.isdir(entry.path) else entry.path


def _leads_back(link: str, root: str) -> bool:
    """Whether a link leads to a folder above itself or above the root: all there would be found in a circle."""
    if link == root:
        return False
    target = os.path.join(os.path.realpath(link), "")
    return any(os.path.realpath(place).startswith(target) for place in (os.path.dirname(link), root))


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
