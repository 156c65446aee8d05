"""What both stores share: the description of a file, URIs and patterns."""

import itertools
import os
import re
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tips_ray.storage.errors import StorageError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True, order=True)
class StoredFile:
    """One file or object."""

    uri: str
    """Absolute path, or `s3://bucket/key`."""
    bytes: int
    etag: str
    """The store's ETag; for a local file the time of its last change in ns, hexadecimal."""


def resolved(uri: str) -> str:
    """`uri` as every process on every machine understands it: an absolute local path, or `s3://...`.

    Raises:
        StorageError: nothing, a scheme that is neither file:// nor s3://, or no bucket.
    """
    if not uri:
        raise StorageError("a URI is empty; write a path or s3://bucket/name")
    parts = urlsplit(uri) if "://" in uri or uri.startswith("file:") else None
    if parts is None:
        return os.path.abspath(os.path.expanduser(uri))
    if parts.scheme == "file" and parts.netloc in ("", "localhost"):
        return os.path.abspath(unquote(parts.path))
    if parts.scheme != "s3":
        raise StorageError(f"{uri}: {parts.scheme}:// is not supported; use a local path, file:/// or s3://")
    if not parts.netloc:
        raise StorageError(f"{uri}: the bucket is missing; write s3://bucket/name")
    return uri.rstrip("/")


def is_local(uri: str) -> bool:
    """Whether `uri` is a path of this machine, and not in an object store."""
    return not uri.startswith("s3://")


def join(uri: str, *names: str) -> str:
    """`uri` with `names` below it; `file://` becomes a plain path."""
    base = resolved(uri) if uri.startswith("file:") else uri
    return "/".join([base.rstrip("/"), *(name.strip("/") for name in names)])


def without_braces(pattern: str) -> list[str]:
    """Every name that `{000..099}` (both ends included, digits kept) and `{a,b}` stand for, in their order."""
    parts = _BRACES.split(pattern)
    choices = [_choices(part) if number % 2 else [part] for number, part in enumerate(parts)]
    return ["".join(name) for name in itertools.product(*choices)]


def _choices(inside: str) -> list[str]:
    match = _RANGE.fullmatch(inside)
    if not match:
        return inside.split(",")
    first, last = match.groups()
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(last) + 1)]


def as_regex(pattern: str) -> re.Pattern[str]:
    """`*` stands for any part of a name, `**` for any part of a path; all else for itself."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*)", pattern)))
