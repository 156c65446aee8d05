"""Objects behind s3://. The store is AWS or what AWS_ENDPOINT_URL names; credentials come by boto3's usual chain.

boto3 does all but Parquet, which Arrow reads. Neither retries by itself: `errors.attempt` does, for both alike. Only
the parts of an upload are retried one by one, by boto3: if one of ten thousand fails, the others must not be lost.
"""

import io
import os
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
from botocore.config import Config
from botocore.exceptions import ClientError
from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

from tips_ray.storage.errors import StorageError, attempt, proxy_of_store, without_credentials
from tips_ray.storage.files import OUTPUT, StoredFile, as_regex, is_hidden, is_output

CONNECT_SECONDS, READ_SECONDS = 4, 60
TRIES_OF_A_PART = 4
PIECE_BYTES, PIECES_AT_ONCE = 32 * 2**20, 8


def matching(names: Iterable[str], hidden: bool) -> dict[str, list[StoredFile]]:
    """The objects that each name stands for: one, all below a prefix, or a pattern with `*`.

    Names in one folder share a listing, so that `{00000..11999}.tar` takes 12 requests and not 12,000.
    """
    groups, found, marked = defaultdict(list), {}, set()
    for name in names:
        groups[posixpath.dirname(name.partition("*")[0])].append(name)
    for group in groups.values():
        is_single = len(group) == 1 and "*" not in group[0]
        objects = _single(group[0]) if is_single else _in_common(group)
        found |= {group[0]: objects} if is_single else _assigned(objects, group)
        marked |= {posixpath.dirname(file.uri) for file in objects if posixpath.basename(file.uri) == OUTPUT}
    if hidden:
        return found
    return {name: [file for file in files if not _is_passed(file.uri, name, marked)] for name, files in found.items()}


def _is_passed(uri: str, name: str, marked: set[str]) -> bool:
    return is_hidden(uri, name) or is_output(uri, name, marked.__contains__)


def stat(uri: str) -> StoredFile:
    """Size and ETag of an object."""
    bucket, key = _split(uri)
    head = _client().head_object(Bucket=bucket, Key=key)
    return StoredFile(uri, head["ContentLength"], head["ETag"].strip('"'))


def read(uri: str, start: int, stop: int | None) -> bytes:
    """Bytes [start, stop); fewer where the object ends before."""
    bucket, key = _split(uri)
    if stop is not None and stop <= start:
        return b""
    last = "" if stop is None else stop - 1
    try:
        return _client().get_object(Bucket=bucket, Key=key, Range=f"bytes={start}-{last}")["Body"].read()
    except ClientError as error:
        if error.response["Error"]["Code"] in ("InvalidRange", "416"):
            return b""
        raise


def write(uri: str, content: bytes) -> None:
    """Replace the object."""
    bucket, key = _split(uri)
    _client().put_object(Bucket=bucket, Key=key, Body=content)


def create(uri: str, content: bytes) -> bool:
    """Write the object unless it is there; False if it was."""
    bucket, key = _split(uri)
    try:
        _client().put_object(Bucket=bucket, Key=key, Body=content, IfNoneMatch="*")
    except ClientError as error:
        if error.response["Error"]["Code"] in ("PreconditionFailed", "412"):
            return False
        raise
    return True


def upload(path: str, uri: str) -> None:
    """Copy a local file to an object, in parts where it is large."""
    bucket, key = _split(uri)
    with open(path, "rb") as file:
        _client(TRIES_OF_A_PART).upload_fileobj(file, bucket, key)


def download(uri: str, path: str) -> None:
    """Copy an object to a local file, in pieces that are tried again one by one."""

    def fetch(start: int) -> None:
        piece = attempt(uri, lambda: read(uri, start, min(start + PIECE_BYTES, size)))
        os.pwrite(file.fileno(), piece, start)

    size = stat(uri).bytes
    with open(path, "wb") as file, ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
        list(pool.map(fetch, range(0, size, PIECE_BYTES)))
        if os.fstat(file.fileno()).st_size != size:
            raise StorageError(f"{uri}: the object changed while it was read; try again")


def names_in(uri: str, folders: bool) -> list[str]:
    """Names of the objects, or of the prefixes, right below `uri`; none where there is nothing."""
    _, key = _split(uri)
    prefix = f"{key}/" if key else ""
    kind, field = ("CommonPrefixes", "Prefix") if folders else ("Contents", "Key")
    below = [entry[field] for page in _pages(uri, prefix, delimiter="/") for entry in page.get(kind, ())]
    return [name.removeprefix(prefix).rstrip("/") for name in below if name != prefix]


def delete(uri: str) -> None:
    """Remove an object; nothing if it is not there."""
    bucket, key = _split(uri)
    _client().delete_object(Bucket=bucket, Key=key)


def delete_folder(uri: str) -> None:
    """Remove all objects below `uri`."""
    files = _objects(uri, f"{_split(uri)[1]}/")
    with ThreadPoolExecutor(PIECES_AT_ONCE) as pool:
        list(pool.map(lambda file: attempt(file.uri, lambda: delete(file.uri)), files))


def arrow_filesystem() -> S3FileSystem:
    """Arrow's S3 file system, made in the process that uses it; one per set of AWS_ variables."""
    return _arrow(_environment())


class PlainFilesystem:
    """The part of Arrow's file system that reads, by boto3: Arrow cannot name keys with empty, `.` or `..` parts."""

    def open_input_file(self, path: str) -> pa.PythonFile:
        """A file for Arrow; `path` is without the scheme."""
        return pa.PythonFile(io.BufferedReader(_ObjectFile(f"s3://{path}"), PIECE_BYTES // 32), mode="r")


class _ObjectFile(io.RawIOBase):
    """An object as a file in which one can seek; each read is a request."""

    def __init__(self, uri: str) -> None:
        self.uri, self.place, self.bytes = uri, 0, stat(uri).bytes

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self.place

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self.place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self.place, io.SEEK_END: self.bytes}[whence]
        return self.place

    def readinto(self, buffer: Any) -> int:
        content = read(self.uri, self.place, min(self.place + len(buffer), self.bytes))
        buffer[: len(content)] = content
        self.place += len(content)
        return len(content)


def is_plain(uri: str) -> bool:
    """Whether Arrow can name the object: no part of the key is empty, `.` or `..`."""
    return not {"", ".", ".."}.intersection(_split(uri)[1].split("/"))


def _single(uri: str) -> list[StoredFile]:
    """The object of this name, or all below it."""
    _, key = _split(uri)
    files = _objects(uri, f"{key}/" if key else "")
    if not files and key:
        files = [file for file in _objects(uri, key) if file.uri == uri]
    return files


def _in_common(names: list[str]) -> list[StoredFile]:
    """All objects that begin as all of the names do."""
    return _objects(names[0], posixpath.commonprefix([_split(name)[1].partition("*")[0] for name in names]))


def _assigned(objects: list[StoredFile], names: list[str]) -> dict[str, list[StoredFile]]:
    """The objects of each name; a plain name stands for an object or for all below it."""
    found: dict[str, list[StoredFile]] = {name: [] for name in names}
    patterns = {name: as_regex(name) for name in names if "*" in name}
    for file in objects:
        for name in filter(found.__contains__, _with_parents(file.uri)):
            found[name].append(file)
        for name, pattern in patterns.items():
            if pattern.fullmatch(file.uri):
                found[name].append(file)
    return found


def _with_parents(uri: str) -> Iterator[str]:
    while uri.count("/") > 2:
        yield uri
        uri = posixpath.dirname(uri)


def _objects(uri: str, prefix: str) -> list[StoredFile]:
    bucket, _ = _split(uri)
    entries = (entry for page in _pages(uri, prefix) for entry in page.get("Contents", ()))
    return [
        StoredFile(f"s3://{bucket}/{entry['Key']}", entry["Size"], entry["ETag"].strip('"'))
        for entry in entries
        if not entry["Key"].endswith("/")
    ]


def _pages(uri: str, prefix: str, delimiter: str = "") -> Iterator[dict[str, Any]]:
    bucket, _ = _split(uri)
    request = {"Bucket": bucket, "Prefix": prefix, "Delimiter": delimiter}
    while True:
        page = attempt(uri, lambda: _client().list_objects_v2(**request))
        yield page
        if not page.get("IsTruncated"):
            return
        request["ContinuationToken"] = page["NextContinuationToken"]


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _environment() -> tuple[tuple[str, str], ...]:
    return tuple(sorted(item for item in os.environ.items() if item[0].startswith("AWS_")))


def _client(tries: int = 1) -> Any:
    return _boto(_environment(), tries)


@lru_cache(maxsize=4)
def _boto(environment: tuple[tuple[str, str], ...], tries: int = 1) -> Any:
    from boto3.session import Session  # takes most of a second, and local files do not need it

    retries = {"total_max_attempts": tries, "mode": "standard"}
    config = Config(
        connect_timeout=CONNECT_SECONDS, read_timeout=READ_SECONDS, retries=retries, max_pool_connections=64
    )
    return Session().client("s3", endpoint_url=_endpoint(environment), config=config)


@lru_cache(maxsize=2)
def _arrow(environment: tuple[tuple[str, str], ...]) -> S3FileSystem:
    endpoint, region = _endpoint(environment), _boto(environment).meta.region_name
    options: dict[str, Any] = {} if region in (None, "aws-global") else {"region": region}
    if endpoint:
        options |= {"endpoint_override": urlsplit(endpoint).netloc, "scheme": urlsplit(endpoint).scheme}
    if proxy := proxy_of_store():
        options["proxy_options"] = proxy if "://" in proxy else f"http://{proxy}"
    return S3FileSystem(
        connect_timeout=CONNECT_SECONDS,
        request_timeout=READ_SECONDS,
        retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),
        **options,
    )


def _endpoint(environment: tuple[tuple[str, str], ...]) -> str | None:
    settings = dict(environment)
    endpoint = settings.get("AWS_ENDPOINT_URL_S3") or settings.get("AWS_ENDPOINT_URL") or None
    if endpoint and not re.match(r"https?://[^/]", endpoint):
        shown = without_credentials(endpoint).rpartition("@")[2]
        raise StorageError(f"AWS_ENDPOINT_URL ({shown}) must begin with http:// or https://")
    return endpoint
