"""Images that a table names by path, by s3:// key or by URL."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache, partial
from typing import NamedTuple

import urllib3

from tips_ray import storage
from tips_ray.storage import NotFoundError

NAMES = ("image_path", "path", "file_name", "filename", "file", "s3_key", "s3_uri", "image_url", "url")
READERS = 16
"""Images that are fetched at the same time."""
DOWNLOAD_SECONDS = 20
BUSY = (408, 429, 500, 502, 503, 504)
"""Answers of a web server that may pass."""


class Fetched(NamedTuple):
    """The bytes of an image, or why there are none."""

    image: bytes
    fault: str = ""


def fetch_all(places: Sequence[str], table: str) -> list[Fetched]:
    """Images at `places`: a URL, an s3:// key, an absolute path, or a path from the folder of `table`.

    An empty place gives no bytes. What is not there is a fault of its row; a URL that does not answer is one too, since
    the web forgets.

    Raises:
        StorageError: the object store fails after three tries.
    """
    with ThreadPoolExecutor(READERS) as pool:
        return list(pool.map(partial(_fetch, folder=os.path.dirname(table)), places))


def _fetch(place: str, folder: str) -> Fetched:
    if not place:
        return Fetched(b"")
    if place.startswith(("http://", "https://")):
        return _downloaded(place)
    uri = place if "://" in place or os.path.isabs(place) else storage.join(folder, place)
    try:
        return Fetched(storage.read_bytes(uri))
    except NotFoundError:
        return Fetched(b"", f"there is no such image: {uri}")


def _downloaded(url: str) -> Fetched:
    try:
        answer = _pool().request("GET", url)
    except urllib3.exceptions.HTTPError as error:
        reason = error.reason if isinstance(error, urllib3.exceptions.MaxRetryError) else error
        return Fetched(b"", f"{url}: no download ({type(reason).__name__})")
    if answer.status != 200:
        return Fetched(b"", f"{url}: no download (status {answer.status})")
    return Fetched(answer.data)


@lru_cache(maxsize=1)
def _pool() -> urllib3.PoolManager:
    """Tries again up to three times where that may help, after pauses of its own; follows redirects."""
    retries = urllib3.Retry(
        3, backoff_factor=0.5, status_forcelist=BUSY, raise_on_status=False, respect_retry_after_header=False
    )
    headers = {"User-Agent": "tips_ray"}
    return urllib3.PoolManager(READERS, headers, maxsize=READERS, retries=retries, timeout=DOWNLOAD_SECONDS)
