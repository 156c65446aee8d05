"""Leftovers in run folders and storage that nothing needs: killed saves, damaged checkpoints, old leases, old indexes.

A run that is being trained, or whose start may still live on another machine, is left alone. Nothing that a start, an
evaluation or a replay reads is a leftover: whole checkpoints, whole bad steps, metrics, events, results.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from tips_ray import storage
from tips_ray.runs.checkpoint import checkpoints_of, unusable_checkpoints
from tips_ray.runs.folder import CONFIG
from tips_ray.runs.lease import RunIsTrainedError, borrowed, old_leases, require_free
from tips_ray.runs.run import known_data
from tips_ray.runs.status import run_folders_below
from tips_ray.storage import StoredFile
from tips_ray.words import bytes_text, table

TEMPORARY = re.compile(r"/\.[^/]+\.[0-9a-f]{32}\.tmp$|/\.mlflow-[^/]+/[^/]+$")
"""Files that are written beside their place, as `storage` and a new database of MLflow do."""
WRITTEN_SECONDS = 3600.0
"""Nobody writes a local file any more that has not changed for so long."""
INDEX_DAYS = 7
"""A younger index may wait for its first run."""
BAD_STEP = "bad_step.json"


@dataclass(frozen=True)
class Orphan:
    """A file or folder that nothing needs."""

    uri: str
    why: str
    bytes: int
    is_folder: bool = True


@dataclass
class Found:
    """Orphans below a place, by the run that they belong to, and what was left alone."""

    of_runs: dict[str, list[Orphan]] = field(default_factory=dict)
    beside: list[Orphan] = field(default_factory=list)
    """In the storage, outside the runs."""
    left: list[str] = field(default_factory=list)
    """A sentence about each run, and about the indexes, if they were left alone."""

    @property
    def orphans(self) -> list[Orphan]:
        return [*(orphan for orphans in self.of_runs.values() for orphan in orphans), *self.beside]


def find_orphans(uri: str) -> Found:
    """Orphans of the run at `uri`, or of a storage: of all runs directly below it and of its indexes.

    Raises:
        NotFoundError: there is neither.
        StorageError: the storage cannot be read.
    """
    files, found = storage.list_files(uri, hidden=True), Found()
    is_run = any(file.uri == storage.join(uri, CONFIG) for file in files)
    for run in [uri] if is_run else run_folders_below(uri):
        try:
            require_free(run)
            found.of_runs[run] = _outermost(_of_run(run, _below(files, run)))
        except storage.StorageError:
            raise
        except ValueError as error:  # it is being trained, or was written by another version
            found.left.append(str(error))
    if not is_run:
        found.beside = _outermost(_beside_runs(uri, files, found.left))
    return found


def collect(found: Found) -> Found:
    """Delete orphans; returns those that were. Each run's are looked for again while no start can take the run.

    Raises:
        StorageError: something cannot be deleted; what is left is found again.
    """
    gone = Found()
    for run, orphans in found.of_runs.items():
        if not orphans:
            continue
        try:
            with borrowed(run):
                gone.of_runs[run] = _outermost(_of_run(run, storage.list_files(run, hidden=True)))
                _delete(gone.of_runs[run])
        except RunIsTrainedError as error:
            gone.left.append(str(error))
    _delete(found.beside)
    gone.beside = found.beside
    return gone


def lines(found: Found, is_dry: bool) -> Iterator[str]:
    """A table of orphans, what was left alone, and the sum."""
    orphans = found.orphans
    if orphans:
        yield table(("bytes", "what", "why"), [[bytes_text(one.bytes), one.uri, one.why] for one in orphans])
    yield from (f"left alone: {reason}" for reason in found.left)
    size = bytes_text(sum(one.bytes for one in orphans))
    if not orphans:
        yield "nothing to collect"
    elif is_dry:
        yield f"{len(orphans)} to collect, {size}; the same command without --dry-run deletes them"
    else:
        yield f"{len(orphans)} deleted, {size} freed"


def _of_run(run: str, files: Sequence[StoredFile]) -> Iterator[Orphan]:
    for uri, why in unusable_checkpoints(checkpoints_of(run)).items():
        yield Orphan(uri, why, _size(files, uri))
    for uri in storage.list_folders(storage.join(run, "bad_steps")):
        if not storage.exists(storage.join(uri, BAD_STEP)):
            yield Orphan(uri, f"half-written bad step: it has no {BAD_STEP}", _size(files, uri))
    notes = storage.join(run, "ray")
    if _below(files, notes):
        yield Orphan(notes, "notes of Ray, which each start deletes", _size(files, notes))
    sizes = {file.uri: file.bytes for file in files}
    for uri in old_leases(run):
        yield Orphan(uri, "lease of an earlier start", sizes.get(uri, 0), is_folder=False)
    yield from _temporary(files)


def _beside_runs(uri: str, files: Sequence[StoredFile], left: list[str]) -> Iterator[Orphan]:
    """Orphans among the indexes and right below a storage; runs of sweeps, which lie deeper, keep their indexes."""
    indexes = storage.join(uri, "index")
    of_index = _below(files, indexes)
    databases = storage.join(uri, ".mlflow-")
    shallow = [file for file in files if "/" not in _name(file, uri) or file.uri.startswith(databases)]
    yield from _temporary([*of_index, *shallow])
    try:
        folders = {file.uri.removesuffix(f"/{CONFIG}") for file in files if file.uri.endswith(f"/{CONFIG}")}
        known = {known_data(folder) for folder in folders}
    except ValueError as error:
        left.append(f"{indexes}: it is not known which of them runs need: {error}")
        return
    for index in storage.list_folders(indexes):
        if why := _useless(index, known, of_index):
            yield Orphan(index, why, _size(of_index, index))


def _useless(index: str, known: set[str], files: Sequence[StoredFile]) -> str:
    """Why an index is an orphan; empty if it is none, or may still be written."""
    try:
        head: dict[str, Any] = json.loads(storage.read_bytes(storage.join(index, "index.json")))
        created, marks = datetime.fromisoformat(head["created"]), {head["fingerprint"], head.get("earlier", "")}
    except storage.NotFoundError:
        is_over = all(map(_is_old, _below(files, index)))
        return "half-written index: it has no index.json" if is_over else ""
    except (KeyError, TypeError, json.JSONDecodeError):
        return ""  # of another version, or damaged: the next start says so
    if datetime.now(UTC) - created < timedelta(days=INDEX_DAYS) or (marks - {""}) & known:
        return ""
    return f"index of data that no run here has, made {created:%Y-%m-%d}"


def _temporary(files: Iterable[StoredFile]) -> Iterator[Orphan]:
    for file in files:
        if TEMPORARY.search(file.uri) and _is_old(file):
            yield Orphan(file.uri, "unfinished write of a process that was killed", file.bytes, is_folder=False)


def _outermost(orphans: Iterable[Orphan]) -> list[Orphan]:
    """Without those in a folder that is an orphan itself."""
    every = list(orphans)
    folders = tuple(f"{one.uri}/" for one in every if one.is_folder)
    return [one for one in every if not one.uri.startswith(folders)]


def _is_old(file: StoredFile) -> bool:
    """A local file that nobody writes any more; objects appear whole, and do not tell their age."""
    return storage.is_local(file.uri) and time.time() - int(file.etag, 16) / 1e9 > WRITTEN_SECONDS


def _delete(orphans: Iterable[Orphan]) -> None:
    for orphan in orphans:
        (storage.delete_folder if orphan.is_folder else storage.delete)(orphan.uri)


def _name(file: StoredFile, folder: str) -> str:
    """Path below a folder."""
    return file.uri.removeprefix(f"{folder}/")


def _below(files: Iterable[StoredFile], folder: str) -> list[StoredFile]:
    return [file for file in files if file.uri.startswith(f"{folder}/")]


def _size(files: Iterable[StoredFile], folder: str) -> int:
    return sum(file.bytes for file in _below(files, folder))
