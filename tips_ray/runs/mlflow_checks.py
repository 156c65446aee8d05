"""Whether MLflow can take a run: asked before it starts, so that a fault costs no accelerator."""

import os
import re
import shutil
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

from tips_ray.runs.mlflow_access import (
    ForeignAnswer,
    TrackingError,
    database_failure,
    database_path,
    mlflow_client,
    mlflow_failures,
    without_credentials,
)

ANSWER_SECONDS = 10
SERVER_DATABASES = "postgresql", "mysql", "mssql", "sqlite+"
OF_DATABRICKS = "databricks", "databricks-uc", "uc"
TABLES = "SELECT name FROM sqlite_master WHERE type = 'table'"
EXPERIMENT = "SELECT experiment_id, lifecycle_stage FROM experiments WHERE name ="
LOCK_SECONDS = 5.0
"""A database is locked if nothing can be written for so long; other runs hold the lock for milliseconds."""
NEW_DATABASE_BYTES = 4 * 2**20
REVISION = re.compile(r"^(revision|down_revision)\s*(?::[^=]*)?=\s*[\"']([0-9a-z_]+)[\"']", re.MULTILINE)


def require_answer(
    uri: str, key: str = "tracking.mlflow_uri", experiment: str | None = None, seconds: float = ANSWER_SECONDS
) -> None:
    """Ask the server once, or try the database; what is written is undone. The folder of a database is made.

    Args:
        uri: of the tracking server or database.
        key: of the config, which names it.
        experiment: None: it may be in any state.
        seconds: longest wait for a server.

    Raises:
        TrackingError: a run could not be tracked there.
    """
    path = database_path(uri)
    if uri.startswith("sqlite:") and (path is None or path.name in ("", ":memory:")):
        raise TrackingError(f"{key} ({uri}) is a database in memory, lost at the end: give sqlite:///FILE")
    if path is not None:
        _require_database(path, uri, key, experiment)
        return
    if uri.startswith(SERVER_DATABASES):
        _require_server_database(uri, key, experiment)
        return
    if uri.startswith("http"):
        _require_server(uri, key, seconds)
    elif uri not in OF_DATABRICKS:
        _require_no_folder(uri, key)
    with mlflow_failures(uri, key):
        found = mlflow_client(uri).get_experiment_by_name(experiment or "Default")
        if found is not None and not found.experiment_id:
            raise ForeignAnswer("nothing")
    if experiment and found is not None:
        require_active(experiment, found.experiment_id, found.lifecycle_stage, uri, key)


def require_active(name: str, number: int | str, stage: str, uri: str, key: str) -> None:
    """
    Raises:
        TrackingError: the experiment was deleted; MLflow keeps its name, so that no new one can have it.
    """
    if stage != "active":
        raise TrackingError(
            f"{key.replace('mlflow_uri', 'experiment')} ({name}) was deleted in MLflow: restore it with `mlflow "
            f"experiments restore --experiment-id {number}` where MLFLOW_TRACKING_URI={without_credentials(uri)}, or "
            "give another name"
        )


def _require_no_folder(uri: str, key: str) -> None:
    is_folder = ":" not in uri or uri.startswith("file:")
    if is_folder and os.environ.get("MLFLOW_ALLOW_FILE_STORE", "").lower() not in ("true", "1"):
        raise TrackingError(
            f"{key} ({uri}) names a folder, and MLflow keeps runs in databases now: give sqlite:///FILE or "
            "http://HOST; `mlflow migrate-filestore` copies the runs of a folder into a database"
        )


def _require_server(uri: str, key: str, seconds: float) -> None:
    address = without_credentials(uri).rstrip("/")
    try:
        urllib.request.urlopen(f"{address}/health", timeout=seconds).close()
    except urllib.error.HTTPError:
        pass  # it answers, if only to say that we must log in
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise TrackingError(
            f"{key} ({address}) does not answer ({reason}): start that server or correct the address"
        ) from None


def _require_database(path: Path, uri: str, key: str, experiment: str | None) -> None:
    if path.is_dir():
        raise TrackingError(f"{key} ({uri}) is a folder: give the file of a database in it, or move the folder away")
    if not path.exists() or path.stat().st_size == 0:
        _require_room(path, uri, key)
        return
    try:
        with closing(sqlite3.connect(path, LOCK_SECONDS, isolation_level=None)) as database:
            _require_writable(database)
            _require_version({name for (name,) in database.execute(TABLES)}, database.execute, uri, key)
            for number, stage in database.execute(f"{EXPERIMENT} ?", [experiment]):
                require_active(str(experiment), number, stage, uri, key)
    except sqlite3.Error as error:
        raise database_failure(uri, key, error) from None


def _require_server_database(uri: str, key: str, experiment: str | None) -> None:
    """Ask SQLAlchemy: MLflow would upgrade the tables of an older database unasked, and try for minutes to connect."""
    import sqlalchemy

    with mlflow_failures(uri, key), (engine := sqlalchemy.create_engine(uri)).connect() as database:
        tables = set(sqlalchemy.inspect(engine).get_table_names())
        if not tables:
            return
        _require_version(tables, database.exec_driver_sql, uri, key)
        for number, stage in database.execute(sqlalchemy.text(f"{EXPERIMENT} :name"), {"name": experiment}):
            require_active(str(experiment), number, stage, uri, key)


def _require_room(path: Path, uri: str, key: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingError(
            f"{key} ({uri}): its folder cannot be made ({error.strerror}): make it writable, or correct the path"
        ) from None
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise TrackingError(f"{key} ({uri}): its folder cannot be written: make it writable, or correct the path")
    free = shutil.disk_usage(path.parent).free
    if free < NEW_DATABASE_BYTES:
        raise TrackingError(
            f"{key} ({uri}): the disk is full, a new database takes {NEW_DATABASE_BYTES / 1e6:.0f} MB of which "
            f"{free / 1e6:.1f} MB are there: free some space, or set {key} to a database elsewhere"
        )


def _require_writable(database: sqlite3.Connection) -> None:
    """Write as far as the journal beside the database, and undo it."""
    database.execute("BEGIN IMMEDIATE")
    database.execute("CREATE TABLE tips_ray_check (number INTEGER)")
    database.execute("ROLLBACK")


def _require_version(tables: set[str], execute: Callable[[str], Iterable], uri: str, key: str) -> None:
    place = without_credentials(uri)
    if not {"alembic_version", "experiments", "runs"} <= tables:
        raise TrackingError(
            f"{key} ({place}) has not all tables of MLflow: another program's file, or its making was cut off: move it "
            f"away, and a new one is made, or set {key} to another database"
        )
    found = [version for (version,) in execute("SELECT version_num FROM alembic_version")]
    known, newest = _revisions()
    if not known or found == [newest]:
        return
    if not found or found[0] in known:
        raise TrackingError(
            f"{key} ({place}) was made by an older MLflow (version {found[0] if found else 'unknown'}): copy it, "
            "then `mlflow db upgrade` this address, or set {key} to another database"
        )
    raise TrackingError(
        f"{key} ({place}) was made by a newer MLflow (version {found[0]}, the one installed here knows {newest}): pip "
        f"install --upgrade mlflow, or set {key} to another database"
    )


def _revisions() -> tuple[set[str], str]:
    """All versions of a database that the installed MLflow knows, and the newest; not imported, which takes seconds."""
    spec = find_spec("mlflow")
    places = spec.submodule_search_locations if spec else None
    folder = Path(next(iter(places or ())), "store", "db_migrations", "versions")
    found = [match for file in folder.glob("*.py") for match in REVISION.findall(file.read_text())]
    known = {name for kind, name in found if kind == "revision"}
    newest = known - {name for kind, name in found if kind == "down_revision"}
    return (known, newest.pop()) if len(newest) == 1 else (set(), "")
