"""What both stores share: the description of a file, URIs and patterns."""

import itertools
import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from tips_ray.storage.errors import StorageError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_KEPT_BY_SYSTEMS = r"@eaDir|#recycle|@Recycle|__MACOSX|lost\+found|\$RECYCLE\.BIN|System Volume Information"
_HIDDEN = re.compile(rf"(?:^|/)(?:\.|(?:{_KEPT_BY_SYSTEMS}|_temporary|_delta_log)/)", re.IGNORECASE)
"""A name with a dot, or a folder that a NAS, an archiver, a file system, Spark or Delta keeps for itself."""
_MISSPELLED = re.compile(r"(?!s3://)(?i:s3a?):/")
_VARIABLE = re.compile(r"\$(\w+|\{\w+\})(/|$)")
BROKEN_LINK = "broken link"
NO_FILE = "pipe, socket or device"
OUTPUT = ".tips_ray"
"""Mark in a folder that tips_ray writes: the folder is left out where files are searched above it."""
MOST_NAMES = 1_000_000
"""Most names that the braces of one pattern may stand for."""


@dataclass(frozen=True, order=True)
class StoredFile:
    """One file or object."""

    uri: str
    """Absolute path, or `s3://bucket/key`."""
    bytes: int
    etag: str
    """The store's ETag; for a local file the time of its last change in ns, hexadecimal."""

    @property
    def is_broken_link(self) -> bool:
        """Whether this is a symbolic link to a file that is not there."""
        return self.etag == BROKEN_LINK

    @property
    def is_no_file(self) -> bool:
        """Whether this is a pipe, a socket or a device, which has the name of a file and no content."""
        return self.etag == NO_FILE


def resolved(uri: str) -> str:
    """`uri` as every process on every machine understands it: an absolute local path, or `s3://...`.

    Raises:
        StorageError: nothing, a scheme that is neither file:// nor s3://, no bucket, or a variable of the shell.
    """
    if not uri:
        raise StorageError("a URI is empty; write a path or s3://bucket/name")
    if _MISSPELLED.match(uri):
        raise StorageError(f"{uri} looks like an object of S3; write s3://bucket/name, or ./{uri} for a local path")
    if _VARIABLE.match(uri):
        raise StorageError(
            f"{uri}: variables are not replaced here; write the path itself, ~ for your home, or ./{uri}"
        )
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
    """Every name that `{000..099}` (both ends included, digits kept) and `{a,b}` stand for, in their order.

    Raises:
        StorageError: a range runs backwards or is none of numbers, or there are too many names.
    """
    parts = _BRACES.split(pattern)
    choices = [_choices(part, pattern) if number % 2 else [part] for number, part in enumerate(parts)]
    if math.prod(map(len, choices)) > MOST_NAMES:
        raise StorageError(f"{pattern}: the braces stand for more than {MOST_NAMES:,} names; shorten the ranges")
    return ["".join(name) for name in itertools.product(*choices)]


def _choices(inside: str, pattern: str) -> Sequence[str]:
    match = _RANGE.fullmatch(inside)
    if not match:
        if ".." in inside and "," not in inside:
            raise StorageError(f"{pattern}: {{{inside}}} is no range; write two numbers, such as {{000..099}}")
        return inside.split(",")
    first, last = match.groups()
    count = int(last) - int(first) + 1
    if count < 1:
        raise StorageError(f"{pattern}: the range {{{inside}}} runs backwards; write {{{last}..{first}}}")
    return [f"{number:0{len(first)}d}" for number in range(int(first), int(first) + min(count, MOST_NAMES + 1))]


def as_regex(pattern: str) -> re.Pattern[str]:
    """`*` stands for any part of a name, `**` for any part of a path; all else for itself."""
    words = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*"}
    return re.compile("".join(words.get(part, re.escape(part)) for part in re.split(r"(\*\*/|\*\*|\*)", pattern)))


def fixed_folder(pattern: str) -> str:
    """The folder above the first part of a pattern that has a `*`; a name without any is returned as it is."""
    return os.path.dirname(pattern.partition("*")[0]) if "*" in pattern else pattern


def is_output(path: str, pattern: str, is_marked: Callable[[str], bool]) -> bool:
    """Whether `path` lies in a marked folder, below the folder that `pattern` names."""
    root, folder = fixed_folder(pattern).rstrip("/"), os.path.dirname(path)
    while len(folder) > len(root):
        if is_marked(folder):
            return True
        folder = os.path.dirname(folder)
    return False


def is_hidden(path: str, pattern: str) -> bool:
    """Whether `path`, which `pattern` stands for, is hidden, or lies in a folder that is or that a system keeps.

    What the pattern names is not hidden: `.cache/*.tar` and `data/.cache` stand for what lies there.
    """
    if not _HIDDEN.search(path.removeprefix(fixed_folder(pattern)).removeprefix("/")):
        return False
    named = [as_regex(part) for part in pattern.split("/") if part[:1] != "*"]
    parts = path.removeprefix(fixed_folder(pattern)).removeprefix("/").split("/")
    ends = ["/"] * (len(parts) - 1) + [""]
    odd = [part for part, end in zip(parts, ends, strict=True) if _HIDDEN.match(part + end)]
    return not all(any(name.fullmatch(part) for name in named) for part in odd)
