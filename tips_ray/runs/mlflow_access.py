"""MLflow's client, its new databases, and its failures as sentences with their cure."""

import fcntl
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tips_ray import storage
from tips_ray.storage import without_credentials

if TYPE_CHECKING:
    from mlflow import MlflowClient

DEFAULTS = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "3", "MLFLOW_HTTP_REQUEST_TIMEOUT": "30"}
DEFAULTS |= {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_LOGGING_LEVEL": "WARNING"}
"""Defaults of environment variables: MLflow itself would try for many minutes, and log every table."""
STATUS = re.compile(r"(?:error code|too many) (\d{3})\b")
SAID_CHARACTERS = 200
DATABASE_CURES = {
    "locked": "another program holds its lock: end that program, or, on a network file system without locks, set "
    "{key} to a server or to a database on a local disk",
    "readonly": "make the file and its folder writable, or set {key} to another database",
    "full": "the disk is full: free some space, or set {key} to a database elsewhere",
    "disk i/o": "the disk is full, over its quota or broken: free some space, or set {key} to a database elsewhere",
    "unable to open": "make its folder writable, or set {key} to another database",
    "not a database": "this file is no sqlite database: move it away, and a new one is made, or correct {key}",
    "malformed": "the database is damaged: move it away, and a new one is made, or put a copy back",
    "unsupported uri": "give sqlite:///FILE or http://HOST as {key}",
    "no module named": "pip install the driver of this kind of database, or set {key} to another kind",
    "schema": "see what `mlflow db upgrade` says about it, or set {key} to another database",
}
"""Words in an error of sqlite or SQLAlchemy -> what the user does."""


FOREIGN = (
    "answers with a page that is not MLflow's, such as a login: set MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME "
    "and MLFLOW_TRACKING_PASSWORD, to pass it"
)


class ForeignAnswer(Exception):
    """An answer that MLflow's client takes for one of its server, and that has nothing in it."""


class TrackingError(ConnectionError):
    """MLflow cannot be used; the message says why, and what to do."""


def mlflow_client(uri: str | None) -> "MlflowClient":
    """A client whose failures are told by us: MLflow logs no tracebacks of its database.

    Raises:
        Exception: what MLflow and SQLAlchemy raise where a database cannot be opened, see `mlflow_failures`.
    """
    if "MLFLOW_LOGGING_LEVEL" not in os.environ:
        logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    path = database_path(uri)
    if path and _is_empty(path):
        _make_database(path)
    return MlflowClient(uri)


def database_path(uri: str | None) -> Path | None:
    """The file of `sqlite:///FILE`."""
    return Path(uri.removeprefix("sqlite:///")) if uri and uri.startswith("sqlite:///") else None


def mlflow_is_here(uri: str) -> bool:
    """Whether this machine can reach MLflow: not where it is a file of another machine."""
    path = database_path(uri)
    return path is None or path.exists()


def _is_empty(path: Path) -> bool:
    return not path.exists() or (path.is_file() and path.stat().st_size == 0)


def _make_database(path: Path) -> None:
    """Make MLflow's tables in a file of its own, which then appears at `path` whole.

    MLflow makes them in sixty steps: of two that do it in one file one fails, and a full disk leaves half of them.
    """
    from mlflow import MlflowClient

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".mlflow-", dir=path.parent) as folder:
            made = Path(folder, "mlflow.db")
            MlflowClient(f"sqlite:///{made}").search_experiments(max_results=1)
            content = made.read_bytes()
        if not storage.create_bytes(str(path), content):
            _fill_if_empty(path, content)
    except OSError as error:
        raise storage.failure(str(path), error) from None


def _fill_if_empty(path: Path, content: bytes) -> None:
    """Replace an empty file; of several processes one does it."""
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        is_there = os.path.samestat(os.fstat(file.fileno()), path.stat())
        if is_there and _is_empty(path):
            storage.write_bytes(str(path), content)


@contextmanager
def mlflow_failures(uri: str, key: str) -> Iterator[None]:
    """Turn errors of MLflow into sentences.

    Args:
        uri: of the tracking server or database.
        key: of the config, which names it.

    Raises:
        TrackingError: MLflow failed.
    """
    # ModuleNotFoundError: SQLAlchemy imports the driver of a database when it is first used.
    from alembic.util import CommandError
    from google.protobuf.json_format import ParseError
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except ParseError as error:
        raise server_failure(uri, key, ForeignAnswer(str(error))) from None
    except (MlflowException, SQLAlchemyError, CommandError, ModuleNotFoundError, ForeignAnswer) as error:
        is_server = uri.startswith("http")
        raise (server_failure if is_server else database_failure)(uri, key, error) from None


def database_failure(uri: str, key: str, error: Exception) -> TrackingError:
    """The sentence about an error of sqlite, SQLAlchemy or MLflow's store."""
    text = one_line(error)
    cure = next((cure for word, cure in DATABASE_CURES.items() if word in text.lower()), "correct {key}")
    return TrackingError(f"{key} ({without_credentials(uri)}): {text}; {cure.format(key=key)}")


def server_failure(uri: str, key: str, error: Exception) -> TrackingError:
    """The sentence about an answer of a tracking server."""
    text = one_line(error)
    cure = f"{FOREIGN if _is_foreign(error) else _server_cure(text, _status(error, text))}, or correct {key}"
    said = "" if "Max retries exceeded" in text else f"; it said: {_said(text)}"
    return TrackingError(f"{key} ({without_credentials(uri).rstrip('/')}) {cure}{said}")


def _is_foreign(error: Exception) -> bool:
    """The answer is a page, or JSON that has no error code of MLflow."""
    answer = getattr(error, "json", None)
    is_other_json = isinstance(answer, dict) and "error_code" not in answer
    return is_other_json or isinstance(error, ForeignAnswer) or "not in a valid JSON format" in str(error)


def _status(error: Exception, text: str) -> int:
    found = STATUS.search(text)
    return int(found[1]) if found else getattr(error, "get_http_status_code", lambda: 500)()


def _server_cure(text: str, status: int) -> str:
    if "Invalid Host header" in text:
        return "refuses its own address: start the server with --allowed-hosts and this host"
    if status in (401, 403):
        return (
            f"refuses access ({status}): set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or "
            "MLFLOW_TRACKING_TOKEN, of an account that may write there"
        )
    if status == 404:
        return "has no MLflow at this address (404): add the path below which the server has it"
    if status >= 500 or status == 429:
        return f"fails ({status}): see the log of that server, and start again once it is mended"
    return f"refuses the request ({status}): see the log of that server"


def _said(text: str) -> str:
    body = text.partition("Response body: ")[2] or text
    plain = " ".join(re.sub(r"<[^>]*>", " ", body).split()).strip("' ")
    return plain[:SAID_CHARACTERS] or "nothing"


def one_line(error: Exception) -> str:
    """The text of an error in one short line without credentials and SQL."""
    text = re.sub(r"^\(sqlite3\.\w+\) |\s*\[SQL:.*|\s*\(Background on.*", "", " ".join(str(error).split()))
    return without_credentials(text)[:300]
