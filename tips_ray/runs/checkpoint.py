"""A checkpoint: torch.distributed.checkpoint files and a manifest; found, verified, fetched, without torch.

One without a manifest does not exist; one whose files do not match it is damaged and passed over. `saving.py` writes
one, `loading.py` fills a state with it.
"""

import hashlib
import json
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tips_ray import storage

VERSION = 2
MANIFEST = "manifest.json"
PIECE_BYTES, FILES_AT_ONCE = 32 * 2**20, 8
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint whose manifest is there."""

    uri: str
    step: int
    manifest: dict[str, Any]


def newest_checkpoint(checkpoints_uri: str) -> CheckpointInfo | None:
    """The newest checkpoint that verifies; damaged ones are named in the log and passed over. Reads every byte of it.

    Raises:
        ValueError: a checkpoint was written by another version of the format.
    """
    for checkpoint in reversed(list_checkpoints(checkpoints_uri)):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint
        log.warning("checkpoint %s is damaged and passed over: %s", checkpoint.uri, fault)
    return None


def checkpoint_at(checkpoints_uri: str, step: int) -> CheckpointInfo:
    """The checkpoint of a step, which somebody has found before; only its manifest is read.

    Raises:
        NotFoundError: there is none.
    """
    uri = uri_of(checkpoints_uri, step)
    return CheckpointInfo(uri, step, json.loads(storage.read_text(manifest_of(uri))))


def list_checkpoints(checkpoints_uri: str) -> list[CheckpointInfo]:
    """Every checkpoint with a manifest, oldest first.

    Raises:
        ValueError: one was written by another version of the format.
    """
    found = []
    for uri in sorted(storage.list_folders(checkpoints_uri)):
        manifest = _manifest(uri)
        if manifest:
            found.append(CheckpointInfo(uri, manifest["step"], manifest))
    return found


def newest_step(checkpoints_uri: str) -> int:
    """Of the checkpoints with a manifest; -1 where there is none, or while the storage does not answer."""
    try:
        found = list_checkpoints(checkpoints_uri)
    except storage.StorageError:
        return -1
    return found[-1].step if found else -1


def drop_old_checkpoints(checkpoints_uri: str, step: int, keep_last: int, keep_every_steps: int | None = None) -> None:
    """Delete what is below `step`, which was just saved, but for the newest and those kept for ever.

    Broken saves below it go too. One beyond `step` stays: it is damaged, or this run would have started from it, and
    must not push out a good one.

    Args:
        checkpoints_uri: folder or s3:// prefix that holds the run's checkpoints.
        step: of the newest one.
        keep_last: newest up to `step` that stay.
        keep_every_steps: those whose step is a multiple of it stay as well.
    """
    found = [checkpoint for checkpoint in list_checkpoints(checkpoints_uri) if checkpoint.step <= step]
    for_ever = [checkpoint for checkpoint in found if keep_every_steps and checkpoint.step % keep_every_steps == 0]
    kept = {checkpoint.uri for checkpoint in (*found[-keep_last:], *for_ever)}
    for uri in storage.list_folders(checkpoints_uri):
        if uri < uri_of(checkpoints_uri, step) and uri not in kept:
            remove_checkpoint(uri)


def remove_checkpoint(uri: str) -> None:
    """Delete a checkpoint or what there is of it; the manifest goes first, so that no half of one exists."""
    storage.delete(manifest_of(uri))
    storage.delete_folder(uri)


def checkpoints_of(run_uri: str) -> str:
    """The folder of a run's checkpoints."""
    return storage.join(run_uri, "checkpoints")


def uri_of(checkpoints_uri: str, step: int) -> str:
    return storage.join(checkpoints_uri, f"step-{step:08d}")


def manifest_of(uri: str) -> str:
    """Where the manifest of the checkpoint at `uri` is."""
    return storage.join(uri, MANIFEST)


def _manifest(uri: str) -> dict[str, Any] | None:
    """None where there is none, or where what stands there is no manifest; a store that is away is an error."""
    try:
        content = storage.read_bytes(manifest_of(uri))
    except storage.NotFoundError:
        return None
    try:
        manifest = json.loads(content)
        version = manifest["version"]
    except (ValueError, KeyError, TypeError) as error:  # not UTF-8, not JSON, or not ours
        log.warning("checkpoint %s is damaged and passed over: %s (%s)", uri, MANIFEST, error)
        return None
    if version != VERSION:
        raise ValueError(
            f"{uri} has format version {version}, this program reads version {VERSION}: go on with the "
            "release of tips_ray that wrote it, or give the run another name"
        )
    return manifest


def fetch_files(checkpoint: CheckpointInfo, folder: Path) -> storage.StorageError | None:
    """Copy all files to `folder`; returns what is wrong with them or with the storage, None if nothing."""

    def fetch(name: str, expected: dict[str, Any]) -> str | None:
        storage.download(storage.join(checkpoint.uri, name), folder / name)
        found = digest_of(folder / name)
        return None if found == expected["sha256"] else f"the sha256 of {name} differs from the manifest's"

    try:
        fault = _first_fault(fetch, checkpoint)
    except storage.StorageError as error:
        return error
    return storage.StorageError(fault) if fault else None


def _fault(checkpoint: CheckpointInfo) -> str | None:
    """What is wrong with the files of a checkpoint where they lie, None if nothing. Sizes come before contents."""

    def wrong_size(name: str, expected: dict[str, Any]) -> str | None:
        try:
            found = storage.stat(storage.join(checkpoint.uri, name)).bytes
        except storage.NotFoundError:
            return f"{name} is missing"
        return None if found == expected["bytes"] else f"{name} has {found} bytes instead of {expected['bytes']}"

    def wrong_content(name: str, expected: dict[str, Any]) -> str | None:
        digest, uri = hashlib.sha256(), storage.join(checkpoint.uri, name)
        for start in range(0, expected["bytes"], PIECE_BYTES):
            digest.update(storage.read_bytes(uri, start, start + PIECE_BYTES))
        return None if digest.hexdigest() == expected["sha256"] else f"the sha256 of {name} differs from the manifest's"

    return _first_fault(wrong_size, checkpoint) or _first_fault(wrong_content, checkpoint)


def _first_fault(check: Callable[[str, dict[str, Any]], str | None], checkpoint: CheckpointInfo) -> str | None:
    files = checkpoint.manifest["files"]
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return next(filter(None, pool.map(check, files, files.values())), None)


def digest_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
