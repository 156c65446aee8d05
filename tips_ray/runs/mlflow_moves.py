"""MLflow after a run folder or its storage was moved or copied: a moved run goes on, a copy gets a run of its own."""

import logging
import os
import sqlite3
from contextlib import closing
from pathlib import Path

from tips_ray import storage
from tips_ray.runs.mlflow_access import database_path, without_credentials
from tips_ray.runs.mlflow_note import stored_run_id

ARTIFACTS = "mlartifacts"
"""Folder beside a database of our own, where MLflow keeps files of its runs."""
log = logging.getLogger(__name__)


def is_copy(folder: str, known: str) -> bool:
    """Whether the run folder that MLflow knows still has the same run, and so `folder` is a copy of it.

    Args:
        folder: the run folder now.
        known: the run folder by MLflow's tag.
    """
    if known in ("", without_credentials(folder)):
        return False
    try:
        there = stored_run_id(known)
    except storage.StorageError:
        return False  # it was moved, or was on another machine
    return bool(there) and there == stored_run_id(folder) and not _is_same_place(folder, known)


def follow_artifacts(uri: str) -> None:
    """Point the experiments and runs of a database that was moved to the folder of files beside it.

    MLflow keeps absolute places and has no call that changes them. Best effort: files are still found by hand.
    """
    path = database_path(uri)
    if path is None or not path.is_file():
        return
    now = (path.parent / ARTIFACTS).as_uri()
    try:
        with closing(sqlite3.connect(path, timeout=5)) as database, database:
            for (before,) in database.execute("SELECT artifact_location FROM experiments").fetchall():
                if _has_moved(before, now):
                    _replace(database, before, now)
    except sqlite3.Error as error:
        log.warning("%s: the places of MLflow's files stay as they were before the move: %s", path, error)


def _has_moved(before: str | None, now: str) -> bool:
    if not before or before == now or not before.startswith("file://") or not before.endswith(f"/{ARTIFACTS}"):
        return False
    old, new = (Path(storage.resolved(place)) for place in (before, now))
    is_here = new.exists() or not old.exists()  # else the files stay where another experiment of the user has them
    return is_here and not _is_same_place(str(old.parent), str(new.parent))


def _replace(database: sqlite3.Connection, before: str, now: str) -> None:
    for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
        database.execute(
            f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE {column} = ? OR substr({column}, 1, ?) = ?",
            (now, len(before) + 1, before, len(before) + 1, f"{before}/"),
        )


def _is_same_place(one: str, other: str) -> bool:
    """Whether two names, such as a link and what it points to, are one folder of this machine."""
    both_are_local = storage.is_local(one) and storage.is_local(other)
    return both_are_local and os.path.exists(one) and os.path.exists(other) and os.path.samefile(one, other)
