"""What goes wrong with storage, as one sentence with its cure; transient failures are tried again first."""

import errno
import os
import random
import re
import time
import urllib.request
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

from botocore.exceptions import BotoCoreError, ClientError, ProxyConnectionError

Result = TypeVar("Result")
BACKOFF_SECONDS = (0.5, 2.0)
"""Waits before the second and the third try; each is stretched at random by up to a half."""

_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]*@")


def without_credentials(text: str) -> str:
    """`https://user:password@host` -> `https://host`, for every URL in a text."""
    return _CREDENTIALS.sub("", text)


class StorageError(ValueError):
    """A storage operation failed; the message names the URI and the cure. `may_pass`: worth another try."""

    def __init__(self, message: str, may_pass: bool = False) -> None:
        super().__init__(message)
        self.may_pass = may_pass


class NotFoundError(StorageError):
    """There is no such file, folder or bucket."""


def attempt(uri: str, action: Callable[[], Result]) -> Result:
    """Result of `action`, tried up to three times while its failure may pass.

    Raises:
        StorageError: it still fails, or in a way that no second try cures. Errors that are not about storage pass
            through unchanged.
    """
    for wait in (*BACKOFF_SECONDS, None):
        try:
            return action()
        except (OSError, BotoCoreError, ClientError) as error:
            fault = failure(uri, error)
        if wait is None or not fault.may_pass:
            raise fault
        time.sleep(wait * random.uniform(1, 1.5))
    raise AssertionError("unreachable")


def keep_trying(action: Callable[[], Result], seconds: float) -> Result:
    """Result of an `action` on storage that must succeed and can wait: repeated while its failure may pass.

    Raises:
        StorageError: it still fails after `seconds`, or in a way that no further try cures.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            return action()
        except StorageError as error:
            if not error.may_pass or time.monotonic() >= deadline:
                raise
        time.sleep(min(BACKOFF_SECONDS[-1], seconds))


# Codes of S3 without case and underscores, because Arrow writes NO_SUCH_BUCKET for boto3's NoSuchBucket.
_MISSING = {
    "nosuchbucket": "the bucket does not exist; create it or correct the name",
    "nosuchkey": "there is no such object; check the name",
    "notfound": "there is no such object or bucket; check the name",
    "404": "there is no such object or bucket; check the name",
    "resourcenotfound": "there is no such object or bucket; check the name",
}
_DENIED = "access is denied; check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and the rights on the bucket"
_REFUSED = {
    "accessdenied": _DENIED,
    "forbidden": _DENIED,
    "403": _DENIED,
    "invalidaccesskeyid": "the store does not know this access key; check AWS_ACCESS_KEY_ID and AWS_ENDPOINT_URL",
    "signaturedoesnotmatch": "the keys do not belong together; check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "expiredtoken": "the temporary credentials have expired; renew them",
    "invalidtoken": "the session token is not valid; renew the credentials (AWS_SESSION_TOKEN)",
    "requesttimetooskewed": "the clock of this machine is wrong; set it",
    "permanentredirect": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "301": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "authorizationheadermalformed": "the bucket is in another region; set AWS_DEFAULT_REGION",
    "invalidbucketname": "the bucket's name is not valid; correct the URI",
}
_BUSY = {"slowdown", "serviceunavailable", "internalerror", "internalfailure", "requesttimeout", "throttling"}
_BUSY |= {"conditionalrequestconflict", "500", "502", "503", "504"}
_NO_CREDENTIALS = (
    "no credentials were found; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run under a role"
)
_PASSING = {errno.EIO, errno.EAGAIN, errno.EINTR, errno.EBUSY, errno.ESTALE, errno.ETIMEDOUT, errno.ECONNRESET}


def failure(uri: str, error: BaseException) -> StorageError:
    """What went wrong, as a sentence with its cure."""
    if (proxy := proxy_of_store()) and _is_of_proxy(error):
        return StorageError(
            f"{uri}: the proxy {proxy.rpartition('@')[2]} refuses the request or does not answer; let it pass the "
            "store, or add the store's host to no_proxy",
            may_pass=isinstance(error, ProxyConnectionError),
        )
    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        return _of_code(uri, str(details.get("Code", "")), str(details.get("Message", "")))
    if isinstance(error, BotoCoreError):
        return _of_boto(uri, error)
    if "AWS Error " in str(error):
        return _of_code(uri, _arrow_code(str(error)), "")
    return _of_system(uri, error)


def proxy_of_store() -> str:
    """The proxy of the environment by which the store is asked; empty if there is none."""
    store = urlsplit(_given_endpoint() or "https://s3.amazonaws.com")
    proxy = urllib.request.getproxies_environment().get(store.scheme, "")
    is_spared = urllib.request.proxy_bypass(store.hostname or "")
    return "" if is_spared else proxy


def _is_of_proxy(error: BaseException) -> bool:
    """A store numbers its answers; a proxy that answers in its place does not."""
    if isinstance(error, ClientError):
        details = error.response.get("ResponseMetadata", {})
        headers = details.get("HTTPHeaders", {})
        return bool(headers) and not details.get("RequestId") and "x-amz-request-id" not in headers
    if isinstance(error, ProxyConnectionError):
        return True
    return "CONNECT tunnel failed" in str(error) or (
        "AWS Error ACCESS_DENIED" in str(error) and "No response body" in str(error)
    )


def _given_endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""


def _of_code(uri: str, code: str, message: str) -> StorageError:
    plain = code.lower().replace("_", "")
    if plain in _MISSING:
        return NotFoundError(f"{uri}: {_MISSING[plain]}")
    if plain in _REFUSED:
        return StorageError(f"{uri}: {_REFUSED[plain]}")
    if plain in _BUSY:
        return StorageError(f"{uri}: the store is busy or failing ({code}); try again later", may_pass=True)
    if plain == "networkconnection":
        return _unreachable(uri)
    reason = " ".join(f"{code} {message}".split())
    return StorageError(f"{uri}: the store refuses the request ({reason}); check the URI and the rights on the bucket")


def _arrow_code(text: str) -> str:
    """`NO_SUCH_BUCKET` of `... AWS Error NO_SUCH_BUCKET during HeadObject ...`; an HTTP status where it is unknown."""
    words = text.partition("AWS Error ")[2]
    if words.startswith("UNKNOWN") and "HTTP status " in words:
        return words.partition("HTTP status ")[2][:3]
    return words.split(" ", 1)[0]


def _of_boto(uri: str, error: BotoCoreError) -> StorageError:
    name = type(error).__name__
    if "Credential" in name or "Token" in name:
        return StorageError(f"{uri}: {_NO_CREDENTIALS}")
    if name == "ProfileNotFound":
        return StorageError(f"{uri}: the profile in AWS_PROFILE is not in the configuration; correct it")
    if name in ("ParamValidationError", "InvalidEndpointConfigurationError", "UnsupportedS3ArnError"):
        return StorageError(f"{uri}: this is not a valid bucket or object name; write s3://bucket/name")
    if name == "SSLError":
        return StorageError(f"{uri}: no secure connection; check http:// or https:// in AWS_ENDPOINT_URL")
    if "Checksum" in name:
        return StorageError(f"{uri}: the bytes that arrived differ from those stored; check the network", may_pass=True)
    return _unreachable(uri)


def _of_system(uri: str, error: BaseException) -> StorageError:
    number = getattr(error, "errno", None)
    if isinstance(error, FileNotFoundError):
        return NotFoundError(f"{uri}: there is no such file or folder; check the path")
    if isinstance(error, PermissionError):
        return StorageError(f"{uri}: permission is denied; check the owner and the mode of the file")
    if isinstance(error, (IsADirectoryError, NotADirectoryError, FileExistsError)):
        return StorageError(f"{uri}: a folder stands where a file is meant, or the other way round; check the path")
    if number == errno.ENOSPC:
        return StorageError(f"{uri}: no space is left on the device; free some or write elsewhere")
    if number == errno.ENAMETOOLONG:
        return StorageError(f"{uri[:200]}...: a name in it is too long for the file system; choose a shorter one")
    if number == errno.ELOOP:
        return StorageError(f"{uri}: a symbolic link there leads in a circle; remove it, or link to what is meant")
    reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
    return StorageError(f"{uri}: reading or writing fails ({reason}); check the device", number in _PASSING)


def _unreachable(uri: str) -> StorageError:
    store = without_credentials(_given_endpoint()) or "AWS"
    return StorageError(f"{uri}: the store ({store}) cannot be reached; check AWS_ENDPOINT_URL and the network", True)
