"""Ray's job server (the dashboard's REST interface), with bounded waits and a sentence with a cure for each refusal."""

import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from tips_ray.console import tell

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
REQUEST_SECONDS = 60.0
"""Longest wait for an answer; Ray's own client waits for ever."""
POLL_SECONDS = 2.0
STARTING = ("No available agent", "Agent info not found", "Head node id has not", "UNAVAILABLE")
"""What a head says whose job agent or store has not started."""
PROXY = (502, 503, 504)
"""What a proxy answers whose head does not."""
TOKEN_CURE = (
    "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH to a file that holds the cluster's token; KubeRay keeps it in the "
    "secret of the cluster's name, key auth_token"
)
Found = TypeVar("Found")
for name in ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging"):
    logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)  # packages and connections are told here in words


class ServerError(OSError):
    """The job server refuses; the message says why and what helps."""


class UnreachableError(ServerError):
    """It does not answer now, and may later."""


class JobExistsError(ServerError):
    """It has a job with this id."""


class UnknownJobError(ServerError):
    """It has no such job: a wrong id, or the head was started anew."""


class _Client(JobSubmissionClient):
    """Ray's client; each failure is one of the errors above."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        try:
            answer = super()._do_request(method, endpoint, **{"timeout": REQUEST_SECONDS, **options})
        except AuthenticationError as error:
            has_sent = "Authentication failed" in str(error)
            what = "does not take this token" if has_sent else "wants a token"
            raise ServerError(f"the cluster at {self._address} {what}: {TOKEN_CURE}") from None
        except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
            raise ServerError(f"--address {self._address} is no address ({error}): write http://HOST:8265") from None
        except requests.exceptions.SSLError as error:
            raise ServerError(f"the certificate of {self._address} is not trusted: {_last_line(str(error))}") from None
        except requests.exceptions.RequestException as error:
            raise UnreachableError(_cause(error)) from None
        is_starting = answer.status_code >= 500 and any(sign in answer.text for sign in STARTING)
        if answer.status_code in PROXY or is_starting or (answer.status_code >= 500 and method == "GET"):
            raise UnreachableError(_last_line(answer.text) or f"status {answer.status_code}")
        return answer

    def _raise_error(self, r: requests.Response) -> NoReturn:
        text = _last_line(r.text)
        if "already exists" in r.text:
            raise JobExistsError(f"{self._address} has a job with this id already")
        if r.status_code == 404:
            raise UnknownJobError(f"{self._address} has no such job: {text}; tips-ray jobs list shows those it has")
        if r.status_code == 413 or "exceeds the maximum" in r.text:
            raise ServerError(f"the cluster takes no package of this size ({text}): leave files out of --with")
        raise ServerError(f"{self._address} answers with status {r.status_code}: {text or 'no reason given'}")


class JobServer:
    """A cluster's jobs; every call is bounded in time."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self.address: str = client._address

    @property
    def version(self) -> str:
        """Version of the cluster's Ray."""
        return self._answer("/api/version")["ray_version"]

    def nodes(self) -> list[dict[str, float]]:
        """Ray resources of each living node; empty where the dashboard does not tell them."""
        try:
            rows = self._answer("/api/v0/nodes?limit=10000&detail=1")["data"]["result"]["result"]
            return [dict(row.get("resources_total") or {}) for row in rows if row.get("state") == "ALIVE"]
        except (ServerError, TypeError, KeyError, AttributeError):  # only for a hint
            return []

    def jobs(self) -> list[JobDetails]:
        """All jobs that were submitted, the oldest first."""
        found = [job for job in self._read(self._client.list_jobs) if job.submission_id]
        return sorted(found, key=lambda job: job.start_time or 0)

    def job(self, job_id: str) -> JobDetails:
        """
        Raises:
            UnknownJobError: there is none with this id.
        """
        return self._read(lambda: self._client.get_job_info(job_id))

    def submit(self, job_id: str, entrypoint: str, **options: Any) -> str:
        """
        Args:
            options: as of Ray's `submit_job`.

        Raises:
            JobExistsError: there is one with this id.
            ServerError: it is refused.
        """
        try:
            return self._client.submit_job(submission_id=job_id, entrypoint=entrypoint, **options)
        except ValueError as error:
            raise ServerError(f"Ray refuses the job: {_last_line(str(error))}") from None

    def stop(self, job_id: str) -> None:
        self._client.stop_job(job_id)

    def forget(self, job_id: str) -> None:
        """Delete an ended job with its log."""
        self._client.delete_job(job_id)

    def log(self, job_id: str) -> str:
        """All that the job has printed so far."""
        return self._read(lambda: self._client.get_job_logs(job_id))

    def tail(self, job_id: str) -> Any:
        """Asynchronous iterator of what the job prints, from the beginning, until it or the connection ends."""
        return self._client.tail_job_logs(job_id)

    def _answer(self, endpoint: str) -> Mapping[str, Any]:
        return self._read(lambda: self._client._do_request("GET", endpoint).json())

    def _read(self, ask: Callable[[], Found]) -> Found:
        """What `ask` returns; an answer of another form is not Ray's."""
        try:
            return ask()
        except UnreachableError as error:
            raise UnreachableError(f"{self.address}: {error}") from None
        except (TypeError, KeyError, ValueError):
            raise ServerError(_no_dashboard(self.address)) from None


def connect(address: str | None, seconds: float) -> JobServer:
    """The job server of a cluster, once it answers.

    Args:
        address: of the dashboard, such as http://127.0.0.1:8265; None: RAY_API_SERVER_ADDRESS, or this machine's.
        seconds: longest wait.

    Raises:
        ServerError: it is none, wants another token, or does not answer in time.
    """
    url = _url(address)

    def made() -> JobServer:
        try:
            return JobServer(_client(url))
        except (RuntimeError, KeyError, TypeError, ValueError):  # 404, or an answer of something else
            raise ServerError(_no_dashboard(url)) from None
        except requests.exceptions.HTTPError as error:
            raise UnreachableError(_last_line(str(error))) from None

    return patiently(made, seconds, f"the cluster at {url}")


def _client(url: str) -> _Client:
    """A client of this server: to Ray the variable counts more than an argument."""
    given = os.environ.get("RAY_API_SERVER_ADDRESS")
    os.environ["RAY_API_SERVER_ADDRESS"] = url
    try:
        return _Client(url)
    finally:
        del os.environ["RAY_API_SERVER_ADDRESS"]
        os.environ |= {"RAY_API_SERVER_ADDRESS": given} if given is not None else {}


def patiently(ask: Callable[[], Found], seconds: float, whom: str) -> Found:
    """What `ask` returns once its server answers; says once that it waits.

    Raises:
        UnreachableError: it does not answer in so many seconds.
    """
    deadline, has_told = time.monotonic() + seconds, False
    while True:
        try:
            return ask()
        except UnreachableError as error:
            if time.monotonic() > deadline:
                raise UnreachableError(
                    f"{whom} did not answer for {seconds:.0f} s ({error}): check the address and that its port is "
                    "forwarded, such as by kubectl port-forward service/NAME-head-svc 8265"
                ) from None
            if not has_told:
                tell("wait", f"{'wait':10} {whom} does not answer yet, for {seconds:.0f} s at most: {error}")
            has_told = True
        time.sleep(POLL_SECONDS)


def _url(address: str | None) -> str:
    given = address or os.environ.get("RAY_API_SERVER_ADDRESS") or DEFAULT_ADDRESS
    if given.startswith("ray://"):
        raise ServerError(f"--address {given} is of Ray Client; jobs go to the dashboard: http://HOST:8265")
    if _is_token_missing():
        raise ServerError(f"RAY_AUTH_MODE=token, and there is no token: {TOKEN_CURE}")
    return given.rstrip("/") if "://" in given else f"http://{given}".rstrip("/")


def _is_token_missing() -> bool:
    if os.environ.get("RAY_AUTH_MODE", "").lower() != "token" or os.environ.get("RAY_AUTH_TOKEN"):
        return False
    path = Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    return not path.is_file() or not path.read_text().strip()


def _no_dashboard(url: str) -> str:
    return (
        f"{url} is no dashboard of Ray with a job server: give the address that `ray start` or the head's service "
        "shows, port 8265; the cluster needs ray[default]"
    )


def _cause(error: requests.exceptions.RequestException) -> str:
    """What the system says of a connection, out of the layers that wrap it."""
    if isinstance(error, requests.exceptions.Timeout):
        return f"no answer in {REQUEST_SECONDS:g} s"
    found = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", str(error))
    return found[1] if found else _last_line(str(error))


def _last_line(text: str) -> str:
    """What matters in an answer that may be a traceback or JSON."""
    lines = [line.strip() for line in text.splitlines() if line.strip(" .")]
    try:
        return str(json.loads(text)["msg"])
    except (ValueError, KeyError, TypeError):
        return lines[-1][:300] if lines else ""
