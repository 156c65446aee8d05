"""Find, fetch and verify checkpoints (torch.distributed.checkpoint files and a manifest) without torch.

A folder without a manifest is no checkpoint. The search for the newest reads manifests and sizes; a fetch compares the
sha256 of each file, or of each block, so that no byte is fetched twice. `checkpoint_io` writes the files and fills
tensors from them.
"""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tips_ray import storage

VERSION = 2
MANIFEST = "manifest.json"
_STEP = re.compile(r"step-\d{8,}")
FILES_AT_ONCE = 8
Result = TypeVar("Result")
log = logging.getLogger(__name__)


class DamagedCheckpointError(storage.StorageError):
    """The files of a checkpoint are not those of its manifest; another start takes an older one."""

    def __init__(self, message: str) -> None:
        super().__init__(message, may_pass=True)


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint whose manifest is there."""

    uri: str
    step: int
    manifest: dict[str, Any]


def newest_checkpoint(checkpoints_uri: str) -> CheckpointInfo | None:
    """The newest checkpoint whose files are complete; others are logged and skipped.

    Reads manifests and sizes, no contents.

    Raises:
        ValueError: a checkpoint was written by another version of the format.
    """
    return next(_in_full(checkpoints_uri), None)


def from_newest(checkpoints_uri: str, load: Callable[[CheckpointInfo], Result]) -> Result | None:
    """Result of `load` for the newest undamaged checkpoint of a folder; None where there is none."""
    return first_undamaged(_in_full(checkpoints_uri), load)


def first_undamaged(checkpoints: Iterable[CheckpointInfo], load: Callable[[CheckpointInfo], Result]) -> Result | None:
    """Result of `load` for the first undamaged one; None where there is none. Damaged ones are logged and skipped."""
    for checkpoint in checkpoints:
        try:
            return load(checkpoint)
        except DamagedCheckpointError as error:
            log.warning("%s; the one before is taken", error)
    return None


def _in_full(checkpoints_uri: str) -> Iterator[CheckpointInfo]:
    """Checkpoints whose files have their sizes, newest first."""
    for checkpoint in reversed(list_checkpoints(checkpoints_uri)):
        fault = _size_fault(checkpoint)
        if fault is None:
            yield checkpoint
        else:
            log.warning("checkpoint %s is damaged and passed over: %s", checkpoint.uri, fault)


def mark_damaged(checkpoint: CheckpointInfo, reason: str) -> None:
    """Exclude a checkpoint from searches; its files stay until its step is saved again or retention deletes them.

    Raises:
        StorageError: the mark cannot be written.
    """
    text = json.dumps({**checkpoint.manifest, "damaged": reason}, indent=1)
    storage.write_text(manifest_of(checkpoint.uri), text)


def checkpoint_at(checkpoints_uri: str, step: int) -> CheckpointInfo:
    """The checkpoint of a step that is known to have one; only its manifest is read.

    Raises:
        NotFoundError: there is none.
    """
    uri = uri_of(checkpoints_uri, step)
    return CheckpointInfo(uri, step, json.loads(storage.read_text(manifest_of(uri))))


def list_checkpoints(checkpoints_uri: str) -> list[CheckpointInfo]:
    """Every checkpoint with a manifest that does not call it damaged, oldest first.

    Raises:
        ValueError: one was written by another version of the format.
    """
    uris = sorted(storage.list_folders(checkpoints_uri))
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        manifests = list(pool.map(_manifest, uris))
    return [
        CheckpointInfo(uri, manifest["step"], manifest)
        for uri, manifest in zip(uris, manifests, strict=True)
        if manifest and "damaged" not in manifest
    ]


def unusable_checkpoints(checkpoints_uri: str) -> dict[str, str]:
    """URI of each checkpoint that no start will take, and why: its manifest is missing, or calls it damaged.

    Damaged ones count only beside a whole one: until then somebody may want to mend them by hand.

    Raises:
        ValueError: one was written by another version of the format.
    """
    has_whole = newest_checkpoint(checkpoints_uri) is not None
    found = {}
    for uri in storage.list_folders(checkpoints_uri):
        manifest, is_there = _manifest(uri), storage.exists(manifest_of(uri))
        if not is_there and _STEP.fullmatch(uri.rpartition("/")[2]):
            found[uri] = f"half-written checkpoint: it has no {MANIFEST}"
        elif is_there and manifest is None and has_whole:
            found[uri] = f"damaged checkpoint: its {MANIFEST} cannot be read"
        elif manifest and "damaged" in manifest and has_whole:
            found[uri] = f"damaged checkpoint: {' '.join(str(manifest['damaged']).split())}"
    return found


def newest_step(checkpoints_uri: str) -> int:
    """Step of the newest checkpoint with a manifest; -1 where there is none, or while the storage does not answer."""
    try:
        found = list_checkpoints(checkpoints_uri)
    except storage.StorageError:
        return -1
    return found[-1].step if found else -1


def drop_old_checkpoints(
    checkpoints_uri: str,
    step: int,
    keep_last: int,
    keep_every_steps: int | None = None,
    pinned: Callable[[], Collection[int]] = tuple,
) -> None:
    """Delete checkpoints below `step`, which was just saved, except the newest, those kept for ever and pinned ones.

    Broken saves below it are deleted too. A checkpoint beyond `step` stays and is not counted: it is damaged, or this
    run would have started from it, and it must not displace a good one.

    Args:
        checkpoints_uri: folder or s3:// prefix that holds the run's checkpoints.
        step: of the newest one.
        keep_last: number of newest checkpoints up to `step` to keep.
        keep_every_steps: checkpoints whose step is a multiple of it are kept as well.
        pinned: gives steps that are kept as well.
    """
    found = [checkpoint for checkpoint in list_checkpoints(checkpoints_uri) if checkpoint.step <= step]
    held = pinned()
    stay = [one for one in found if one.step in held or (keep_every_steps and one.step % keep_every_steps == 0)]
    kept = {checkpoint.uri for checkpoint in (*found[-keep_last:], *stay)}
    for uri in storage.list_folders(checkpoints_uri):
        if uri < uri_of(checkpoints_uri, step) and uri not in kept:
            remove_checkpoint(uri)


def drop_later_checkpoints(checkpoints_uri: str, step: int) -> None:
    """Delete every checkpoint after `step`."""
    for uri in storage.list_folders(checkpoints_uri):
        if uri > uri_of(checkpoints_uri, step):
            remove_checkpoint(uri)


def remove_checkpoint(uri: str) -> None:
    """Delete a checkpoint, complete or not; the manifest goes first, so that a partly deleted one does not count."""
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
    """The manifest; None where it is missing or invalid. A store that does not answer is an error."""
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


def fetch_files(
    checkpoint: CheckpointInfo, folder: Path, only: Collection[str] | None = None
) -> storage.StorageError | None:
    """Copy files to `folder` and compare them with the manifest; returns the error, None if there is none.

    Args:
        checkpoint: its manifest names the files.
        folder: a local one.
        only: names of the files that are wanted; None: all.
    """

    def fetch(name: str, expected: dict[str, Any]) -> str | None:
        if "/" in name or name in ("", ".", ".."):
            return f"its manifest names {name!r}, a file outside of it"
        storage.download(storage.join(checkpoint.uri, name), folder / name)
        fault = _wrong_size(name, (folder / name).stat().st_size, expected)
        is_same = fault is None and digest_of(folder / name) == expected["sha256"]
        return fault if fault or is_same else f"the sha256 of {name} differs from the manifest's"

    try:
        fault = _first_fault(fetch, checkpoint, only)
    except storage.StorageError as error:
        return load_error(checkpoint, error)
    return load_error(checkpoint, ValueError(fault)) if fault else None


def load_error(checkpoint: CheckpointInfo, cause: ValueError) -> storage.StorageError:
    """The error of a load: the checkpoint is damaged, unless the storage does not answer."""
    words = f"checkpoint {checkpoint.uri} cannot be loaded: {cause}"
    if isinstance(cause, storage.StorageError) and not isinstance(cause, storage.NotFoundError):
        return storage.StorageError(words, cause.may_pass)
    return DamagedCheckpointError(words)


def _size_fault(checkpoint: CheckpointInfo) -> str | None:
    """A file that is missing or has another size, found without fetching."""

    def wrong_size(name: str, expected: dict[str, Any]) -> str | None:
        try:
            return _wrong_size(name, storage.stat(storage.join(checkpoint.uri, name)).bytes, expected)
        except storage.NotFoundError:
            return f"{name} is missing"

    return _first_fault(wrong_size, checkpoint)


def _wrong_size(name: str, found: int, expected: dict[str, Any]) -> str | None:
    return None if found == expected["bytes"] else f"{name} has {found} bytes instead of {expected['bytes']}"


def _first_fault(
    check: Callable[[str, dict[str, Any]], str | None], checkpoint: CheckpointInfo, only: Collection[str] | None = None
) -> str | None:
    files = {name: entry for name, entry in checkpoint.manifest["files"].items() if only is None or name in only}
    with ThreadPoolExecutor(FILES_AT_ONCE) as pool:
        return next(filter(None, pool.map(check, files, files.values())), None)


def digest_of(path: Path) -> str:
    """sha256 of a local file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
