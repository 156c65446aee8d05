"""Images that a table names by path, by s3:// key or by URL, or holds as base64 text."""

import base64
import os
import re
import time
import unicodedata
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import Any, NamedTuple

import urllib3

from tips_ray import storage
from tips_ray.errors import shortened
from tips_ray.storage import NotFoundError

URLS = ("image_url", "url")
NAMES = ("image_path", "path", "file_name", "filename", "file", "s3_key", "s3_uri", "filepath", *URLS)
READERS = 16
"""Images that are fetched at the same time."""
DOWNLOAD_SECONDS, WHOLE_DOWNLOAD_SECONDS = 20, 120
"""Longest wait for more of an image, and for all of it."""
DOWNLOAD_BYTES, PART_BYTES = 256 * 2**20, 2**20
"""Largest image that is accepted, and bytes read at a time."""
BUSY = (408, 429, 500, 502, 503, 504)
"""Status codes of a web server after which another try may succeed."""

_HELD = re.compile(r"(?i:data):[^,]*,|(?:/9j/|iVBORw0KGgo|UklGR|R0lGOD)\S{60}")
"""How a JPEG, PNG, WebP or GIF begins that is written in base64; no path begins so."""


class Fetched(NamedTuple):
    """The bytes of an image, or why there are none."""

    image: bytes
    fault: str = ""


def fetch_all(places: Sequence[str], table: str) -> list[Fetched]:
    """Images at `places`: a URL, an s3:// key, an absolute path, a path from the folder of `table`, or base64 text.

    An empty place gives no bytes. A missing image or an invalid place is a fault of its row; so is a URL that does not
    answer, because images on the web disappear.

    Raises:
        StorageError: storage fails after three tries, and may come back.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(partial(_fetch, folder=os.path.dirname(table)), places))


def _fetch(place: str, folder: str) -> Fetched:
    if not place:
        return Fetched(b"")
    if place[:8].lower().startswith(("http://", "https://")):
        return _downloaded(place)
    if _HELD.match(place):
        return _held(place)
    uri = place if "://" in place or os.path.isabs(place) else storage.join(folder, place)
    try:
        return Fetched(_read(uri, place))
    except NotFoundError:
        return _missing(uri)
    except storage.StorageError as error:
        if error.may_pass:
            raise
        return _missing(str(error))
    except ValueError as error:
        return _missing(f"{uri} ({error})")


def _missing(words: str) -> Fetched:
    return Fetched(b"", shortened(f"there is no such image: {words}"))


def _held(text: str) -> Fetched:
    """The image that a table holds as base64 text, which `data:image/jpeg;base64,` may precede."""
    try:
        return Fetched(base64.b64decode("".join(text.rpartition(",")[2].split()), validate=True))
    except ValueError as error:
        return Fetched(b"", f"its base64 text cannot be read: {error}")


def _read(uri: str, place: str) -> bytes:
    """The bytes at `uri`, also where its `place` is spelled in the other form of Unicode (macOS decomposes letters)."""
    try:
        return storage.read_bytes(uri)
    except NotFoundError:
        for form in ("NFC", "NFD"):
            other = uri.removesuffix(place) + unicodedata.normalize(form, place)
            if other != uri and storage.exists(other):
                return storage.read_bytes(other)
        raise


def _downloaded(url: str) -> Fetched:
    """Download an image; a body that breaks off is requested once more."""
    outcome = Fetched(b"")
    for _ in range(2):
        try:
            answer = _pool().request("GET", url, preload_content=False)
        except (urllib3.exceptions.HTTPError, ValueError) as error:
            reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
            return _no_download(url, type(reason).__name__)
        try:
            return _body(answer, url)
        except urllib3.exceptions.HTTPError as error:
            outcome = _no_download(url, type(error).__name__)
        finally:
            answer.close()
    return outcome


def _body(answer: Any, url: str) -> Fetched:
    if answer.status != 200:
        return _no_download(url, f"status {answer.status}")
    ends, content = time.monotonic() + WHOLE_DOWNLOAD_SECONDS, bytearray()
    while part := answer.read1(PART_BYTES):  # `stream` and `read` wait until a part is full
        content += part
        if len(content) > DOWNLOAD_BYTES:
            return _no_download(url, f"more than {DOWNLOAD_BYTES:,} bytes")
        if time.monotonic() > ends:
            return _no_download(url, f"not here after {WHOLE_DOWNLOAD_SECONDS} s")
    return Fetched(bytes(content))


def _no_download(url: str, reason: str) -> Fetched:
    return Fetched(b"", f"no download: {url} ({reason})")


@lru_cache(maxsize=1)
def _pool() -> urllib3.PoolManager:
    """A pool that retries up to three times where that may help, after pauses of its own, and follows redirects."""
    retries = urllib3.Retry(
        3, backoff_factor=0.5, status_forcelist=BUSY, raise_on_status=False, respect_retry_after_header=False
    )
    headers = {"User-Agent": "tips_ray"}
    return urllib3.PoolManager(READERS, headers, maxsize=READERS, retries=retries, timeout=DOWNLOAD_SECONDS)
