"""Image files below a folder, found by the names that people write for them."""

import errno
import os
import re
import unicodedata
from collections.abc import Iterable

from tips_ray import storage
from tips_ray.storage import StorageError, StoredFile

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".jfif")
_UNREAD = (".avif", ".heic", ".heif", ".jp2", ".jxl", ".svg", ".tif", ".tiff")
"""Suffixes of images that are not read."""
_THUMBNAILS = re.compile(r"(?:^|/)_?(?:thumbnails|thumbs)/", re.IGNORECASE)


def image_files(folder: str) -> list[StoredFile]:
    """All images below a folder, sorted by URI; thumbnails and broken links included."""
    return [file for file in storage.list_files(folder) if file.uri.lower().endswith(IMAGE_SUFFIXES)]


def thumbnails(files: Iterable[StoredFile], root: str) -> set[str]:
    """URIs of images in folders called thumbnails or thumbs; none where there are no other images."""
    uris = {file.uri for file in files}
    found = {uri for uri in uris if _THUMBNAILS.search(_below(uri, root))}
    return found if len(found) < len(uris) else set()


class ImageFinder:
    """The images of a folder by name: a path, whole or below the folder, or its last part, with or without suffix."""

    def __init__(self, folder: str) -> None:
        self.root = folder
        self.files = {_below(file.uri, folder): file for file in image_files(folder)}
        small = thumbnails(self.files.values(), folder)
        self.counted = {path for path, file in self.files.items() if file.uri not in small}
        """Paths below the folder that are rows even where no table names them: all but thumbnails."""
        self._by_name = _by_name(self.counted)
        self._composed: dict[str, list[str]] | None = None
        self._real: dict[str, str] | None = None
        self._others: dict[str, list[str]] | None = None

    def find(self, name: str) -> tuple[str, str]:
        """Path of an image below the folder, and what is wrong with it or with its name; both may be empty."""
        path = _below(name.removeprefix("./"), self.root)
        found = [path] if path in self.files else self._by_name.get(path) or self._otherwise(path)
        if len(found) != 1:
            return "", f"{len(found)} images have this name" if found else self._missing(path)
        return found[0], self.fault(found[0])

    def fault(self, path: str) -> str:
        """Why the image at a path below the folder cannot be read; empty where nothing is known."""
        return broken_link(self.files[path].uri) if self.files[path].is_broken_link else ""

    def _otherwise(self, path: str) -> list[str]:
        """Images whose names differ in Unicode's form (macOS writes decomposed letters), or lie behind a link."""
        if self._composed is None:
            self._composed = _by_name(self.counted, composed=True)
        found = self._composed.get(composed_form(path), [])
        if found or not storage.is_local(self.root) or not os.path.isfile(os.path.join(self.root, path)):
            return found
        if self._real is None:
            self._real = {_real(file.uri): path for path, file in self.files.items()}
        there = self._real.get(_real(os.path.join(self.root, path)))
        return [] if there is None else [there]

    def _missing(self, path: str) -> str:
        """The reason for a missing image: a folder above it may be a link to a place that is not there."""
        place = self.root if storage.is_local(self.root) else ""
        for part in path.split("/")[:-1] if place else ():
            place = os.path.join(place, part)
            if os.path.islink(place) and not os.path.exists(place):
                return f"there is no such image file: {broken_link(place)}"
        return self._left_out(path) or "there is no such image file"

    def _left_out(self, path: str) -> str:
        """Why a file of this name that is there is no image of the folder; empty where there is none."""
        if self._others is None:
            self._others = _by_name(self._other_files())
        for found in self._others.get(path, []):
            suffix = os.path.splitext(found)[1].lower()
            if suffix in IMAGE_SUFFIXES:
                return "the file is there, but is left out as hidden or kept by a system; rename or move it"
            if found == path or suffix in _UNREAD:
                kind = suffix or "a name without suffix"
                return f"the file is there, but {kind} is not read; write it as JPEG, PNG or WebP"
        return ""

    def _other_files(self) -> list[str]:
        """Paths below the folder of all files that are none of its images, hidden ones included."""
        try:
            there = storage.list_files(self.root, hidden=True)
        except StorageError:  # a hidden folder may be closed to us
            return []
        paths = (_below(file.uri, self.root) for file in there if not file.is_no_file)
        return [path for path in paths if path not in self.files]


def _by_name(paths: Iterable[str], composed: bool = False) -> dict[str, list[str]]:
    """Paths by their last part, by that without its suffix and by themselves, as they are or in composed form."""
    found: dict[str, list[str]] = {}
    for path in paths:
        spelled = composed_form(path) if composed else path
        last = os.path.basename(spelled)
        for name in {spelled, last, os.path.splitext(last)[0]}:
            found.setdefault(name, []).append(path)
    return found


def composed_form(name: str) -> str:
    """Unicode's form NFC: one character for a letter and its accent, which macOS writes as two."""
    return unicodedata.normalize("NFC", name)


def _real(path: str) -> str:
    return os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))


def broken_link(link: str) -> str:
    """What is wrong with a file that is a link to nothing, or to itself by way of others."""
    try:
        os.stat(link)
        fault = "nothing is there"
    except OSError as error:
        fault = "it leads in a circle" if error.errno == errno.ELOOP else "nothing is there"
    return f"{os.path.basename(link)} is a link to {os.readlink(link)}, and {fault}"


def _below(uri: str, root: str) -> str:
    return uri.removeprefix(root.rstrip("/") + "/")
