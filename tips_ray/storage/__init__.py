"""Local paths, file:// and s3:// in one place. Every failure is a `StorageError`: one sentence with its cure."""

import os
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

from pyarrow.fs import FileSystem, LocalFileSystem

from tips_ray.storage import local, s3
from tips_ray.storage.errors import NotFoundError, StorageError, attempt, failure, keep_trying, without_credentials
from tips_ray.storage.files import OUTPUT, StoredFile, fixed_folder, is_local, join, resolved, without_braces
from tips_ray.storage.kinds import looks_like

__all__ = [
    "NotFoundError",
    "StorageError",
    "StoredFile",
    "attempt",
    "create_bytes",
    "create_text",
    "delete",
    "delete_folder",
    "download",
    "exists",
    "failure",
    "filesystem",
    "is_local",
    "join",
    "keep_trying",
    "list_files",
    "list_folders",
    "list_names",
    "looks_like",
    "mark_hides",
    "mark_output",
    "read_bytes",
    "read_text",
    "resolved",
    "stat",
    "upload",
    "without_credentials",
    "write_bytes",
    "write_text",
]


def filesystem(uri: str) -> tuple[FileSystem | s3.PlainFilesystem, str]:
    """Arrow's file system and the path in it. Wrap what you do with it in `attempt`: its errors are Arrow's.

    A key that Arrow cannot name comes with a file system that only opens files to read them.
    """
    path = resolved(uri)
    if is_local(path):
        return LocalFileSystem(), path
    return s3.arrow_filesystem() if s3.is_plain(path) else s3.PlainFilesystem(), path.removeprefix("s3://")


def list_files(pattern: str, hidden: bool = False) -> list[StoredFile]:
    """Files that `pattern` stands for, sorted by URI: a file, all below a folder, `*`, `**`, `{000..099}`, `{a,b}`.

    Hidden files and folders (`.name`) and those that a system keeps (`@eaDir`, `__MACOSX`, `lost+found`) count only
    where the pattern names them, or with `hidden`; so do folders that `mark_output` has marked. Links to folders are
    followed. A link to a file that is not there counts as a file: see `StoredFile.is_broken_link`. A pipe, socket or
    device counts only with `hidden`: see `StoredFile.is_no_file`.

    Raises:
        NotFoundError: nothing matches, or one of the names in braces is missing.
    """
    names = without_braces(resolved(pattern))
    found = attempt(pattern, lambda: _store(names[0]).matching(names, hidden))
    for name, files in found.items():
        if not files:
            beside = "" if len(names) == 1 else f" (of {len(names)} names in {pattern})"
            raise NotFoundError(f"{name}{beside}: no file is there; check the name, or write the files first")
    return sorted({file for files in found.values() for file in files})


def mark_output(uri: str) -> None:
    """Mark a folder that tips_ray is about to write, so that `list_files` leaves it out where data lie above it."""
    create_text(join(uri, OUTPUT), "tips_ray writes this folder: its files are no data of a source above it.\n")


def mark_hides(folder: str, pattern: str, uris: Iterable[str]) -> str:
    """The first of `uris`, files that `pattern` stands for, that a mark of `folder` would hide; empty if none."""
    place = f"{resolved(folder)}/"
    names = without_braces(resolved(pattern))
    if not any(place.startswith(f"{fixed_folder(name).rstrip('/')}/") for name in names):
        return ""
    return next((uri for uri in uris if f"{resolved(uri)}/".startswith(place)), "")


def list_names(uri: str) -> list[str]:
    """Names of the files right below `uri` that are not hidden, sorted; none where there is no such folder."""
    return _names(uri, folders=False)


def list_folders(uri: str) -> list[str]:
    """URIs of the folders right below `uri`, sorted; none where there is no such folder."""
    return [join(uri, name) for name in _names(uri, folders=True)]


def stat(uri: str) -> StoredFile:
    """Size and ETag of one file."""
    return _called("stat", uri)


def exists(uri: str) -> bool:
    """Whether a file (not a folder) is there."""
    try:
        stat(uri)
    except NotFoundError:
        return False
    return True


def read_bytes(uri: str, start: int = 0, stop: int | None = None) -> bytes:
    """Bytes [start, stop) of a file; fewer where it ends before."""
    return _called("read", uri, start, stop)


def read_text(uri: str) -> str:
    """A file of UTF-8 text.

    Raises:
        StorageError: it is not UTF-8.
    """
    content = read_bytes(uri)
    try:
        text, place = content.decode(), 0
    except UnicodeDecodeError as error:
        text, place = "\0", error.start
    if "\0" not in text[:2]:  # UTF-16 without a mark has a zero beside every Latin letter
        return text
    found = looks_like(content)
    fault = (
        f"this is no UTF-8 text but {found}" if found else f"byte {place} is not UTF-8 text; convert the file to UTF-8"
    )
    raise StorageError(f"{uri}: {fault}")


def write_bytes(uri: str, content: bytes) -> None:
    """Replace a file in one move; folders are made."""
    _called("write", uri, content)


def write_text(uri: str, text: str) -> None:
    """Replace a file by UTF-8 text in one move."""
    write_bytes(uri, text.encode())


def create_bytes(uri: str, content: bytes) -> bool:
    """Write a file unless one is there (hard link, conditional put); False if one was. Of several writers one wins."""
    return _called("create", uri, content)


def create_text(uri: str, text: str) -> bool:
    """`create_bytes` of UTF-8 text."""
    return create_bytes(uri, text.encode())


def upload(path: str | Path, uri: str) -> None:
    """Copy a local file to `uri`; it appears there whole."""
    target = resolved(uri)
    attempt(uri, lambda: local.copy(str(path), target) if is_local(target) else s3.upload(str(path), target))


def download(uri: str, path: str | Path) -> None:
    """Copy `uri` to a local file."""
    source, target = resolved(uri), os.path.abspath(path)
    attempt(uri, lambda: local.copy(source, target) if is_local(source) else s3.download(source, target))


def delete(uri: str) -> None:
    """Remove a file; nothing if it is not there."""
    _called("delete", uri)


def delete_folder(uri: str) -> None:
    """Remove a folder and all below it; nothing if it is not there."""
    _called("delete_folder", uri)


def _names(uri: str, folders: bool) -> list[str]:
    return sorted(name for name in _called("names_in", uri, folders) if not name.startswith("."))


def _called(name: str, uri: str, *arguments):
    target = resolved(uri)
    return attempt(uri, lambda: getattr(_store(target), name)(target, *arguments))


def _store(uri: str) -> ModuleType:
    return local if is_local(uri) else s3
