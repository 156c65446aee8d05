"""Whether s3:// would work: endpoint, region, credentials, clock. No secret is ever shown."""

import email.utils
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from tips_ray.errors import Doubt

ANSWER_SECONDS = 4
MOST_SKEW_SECONDS = 15 * 60
"""S3 refuses requests whose time is further off."""


def s3_checks() -> dict[str, Callable[[], str]]:
    """The client's settings, whether the store answers, and its clock."""
    return {"s3 settings": settings_are_whole, "s3 store": store_answers}


def settings_are_whole() -> str:
    """Where the credentials come from, by boto3's own chain."""
    session, endpoint = _session(), _given_endpoint()
    credentials, region = session.get_credentials(), _region(session)
    if credentials is None and endpoint is None:
        return "no endpoint and no credentials are set: local paths only"
    if credentials is None:
        raise ValueError(
            f"AWS_ENDPOINT_URL ({endpoint}) is set, and no credentials are found: set AWS_ACCESS_KEY_ID and "
            "AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run under a role"
        )
    if region is None and endpoint is None:
        raise Doubt("no region is set, and AWS wants one: set AWS_DEFAULT_REGION")
    return f"credentials by {credentials.method}, region {region or 'not set'}, endpoint {_endpoint(session)}"


def store_answers() -> str:
    """Ask once without credentials; any answer will do, and its Date shows how far the clocks are apart."""
    session = _session()
    if _given_endpoint() is None and session.get_credentials() is None:
        return "not asked"
    endpoint = _endpoint(session)
    try:
        headers = _headers(endpoint)
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ValueError(
            f"the store ({endpoint}) does not answer ({reason}): check AWS_ENDPOINT_URL and the network"
        ) from None
    sent = email.utils.parsedate_to_datetime(headers["Date"]).timestamp() if headers["Date"] else time.time()
    skew = abs(time.time() - sent)
    if skew > MOST_SKEW_SECONDS:
        raise ValueError(f"the clock of this machine is {skew:.0f} s apart from the store's: set it (chrony, ntpd)")
    return f"{endpoint} answers, its clock is {skew:.0f} s apart"


def _headers(endpoint: str) -> Any:
    try:
        with urllib.request.urlopen(endpoint, timeout=ANSWER_SECONDS) as response:
            return response.headers
    except urllib.error.HTTPError as error:  # it answers, if only to refuse
        return error.headers


def _session() -> Any:
    from boto3.session import Session

    return Session()


def _region(session: Any) -> str | None:
    return session.region_name or os.environ.get("AWS_REGION")


def _given_endpoint() -> str | None:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or None


def _endpoint(session: Any) -> str:
    return _given_endpoint() or f"https://s3.{_region(session) or 'us-east-1'}.amazonaws.com"
