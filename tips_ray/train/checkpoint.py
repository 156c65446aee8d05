"""TrainState <-> a folder of torch.distributed.checkpoint files with a manifest written last.

A checkpoint without a manifest does not exist; one whose files do not match it is damaged and passed over.
"""

import hashlib
import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from tips_ray import storage
from tips_ray.distributed import gather_objects, rank
from tips_ray.train.state import TrainState

VERSION = 1
MANIFEST = "manifest.json"
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint whose manifest is there."""

    uri: str
    step: int
    manifest: dict[str, Any]


def save_checkpoint(state: TrainState, checkpoints_uri: str, fingerprints: dict[str, str]) -> CheckpointInfo:
    """Write `checkpoints_uri/step-XXXXXXXX`; every rank calls this and gets the result once all files are there.

    Args:
        state: sharded or not; each rank writes its own shards.
        checkpoints_uri: folder or s3:// prefix that holds the run's checkpoints.
        fingerprints: of config and data; kept in the manifest.
    """
    uri = storage.join(checkpoints_uri, f"step-{state.step:08d}")
    with tempfile.TemporaryDirectory() as folder:
        save_state_dict(_state_dict(state), checkpoint_id=folder, no_dist=not dist.is_initialized())
        own = {path.name: _published(path, storage.join(uri, path.name)) for path in sorted(Path(folder).iterdir())}
    files = {name: entry for part in gather_objects(own) for name, entry in part.items()}
    manifest = {"version": VERSION, "step": state.step, **fingerprints, "files": files}
    if rank() == 0:
        storage.write_text(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1))
    gather_objects(None)  # nobody goes on before the checkpoint exists
    return CheckpointInfo(uri, state.step, manifest)


def load_checkpoint(state: TrainState, checkpoint: CheckpointInfo) -> None:
    """Fill `state` in place, on any number of ranks.

    Raises:
        ValueError: the checkpoint was written by another version of the format.
    """
    version = checkpoint.manifest["version"]
    if version != VERSION:
        raise ValueError(f"{checkpoint.uri} has format version {version}, this program reads version {VERSION}")
    tree = _state_dict(state)
    with tempfile.TemporaryDirectory() as folder:
        for name in checkpoint.manifest["files"]:
            storage.download(storage.join(checkpoint.uri, name), Path(folder, name))
        load_state_dict(tree, checkpoint_id=folder, no_dist=not dist.is_initialized())
    for name in ("student", "teacher", "centers"):
        set_model_state_dict(getattr(state, name), tree[name])
    set_optimizer_state_dict(state.student, state.optimizer, optim_state_dict=tree["optimizer"], options=_OPTIONS)
    state.step = checkpoint.step


def newest_checkpoint(checkpoints_uri: str) -> CheckpointInfo | None:
    """The newest checkpoint that verifies; damaged ones are named in the log and passed over."""
    for checkpoint in sorted(list_checkpoints(checkpoints_uri), key=lambda found: -found.step):
        fault = _fault(checkpoint)
        if fault is None:
            return checkpoint
        log.warning("checkpoint %s is damaged and passed over: %s", checkpoint.uri, fault)
    return None


def list_checkpoints(checkpoints_uri: str) -> list[CheckpointInfo]:
    """Every checkpoint with a manifest, oldest first."""
    found = []
    for uri in sorted(storage.list_folders(checkpoints_uri)):
        path = storage.join(uri, MANIFEST)
        if storage.exists(path):
            manifest = json.loads(storage.read_text(path))
            found.append(CheckpointInfo(uri, manifest["step"], manifest))
    return found


def drop_old_checkpoints(checkpoints_uri: str, keep_last: int) -> None:
    """Delete all but the newest; a manifest goes first, so that a half-deleted checkpoint does not exist."""
    for checkpoint in list_checkpoints(checkpoints_uri)[:-keep_last]:
        storage.delete(storage.join(checkpoint.uri, MANIFEST))
        storage.delete_folder(checkpoint.uri)


_OPTIONS = StateDictOptions()


def _state_dict(state: TrainState) -> dict[str, Any]:
    return {
        "student": get_model_state_dict(state.student),
        "teacher": get_model_state_dict(state.teacher),
        "centers": get_model_state_dict(state.centers),
        "optimizer": get_optimizer_state_dict(state.student, state.optimizer, options=_OPTIONS),
    }


def _published(path: Path, uri: str) -> dict[str, Any]:
    storage.upload(path, uri)
    return {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}


def _fault(checkpoint: CheckpointInfo) -> str | None:
    """What is wrong with the files of a checkpoint, None if nothing."""
    for name, expected in checkpoint.manifest["files"].items():
        uri = storage.join(checkpoint.uri, name)
        if not storage.exists(uri):
            return f"{name} is missing"
        content = storage.read_bytes(uri)
        if len(content) != expected["bytes"]:
            return f"{name} has {len(content)} bytes instead of {expected['bytes']}"
        if hashlib.sha256(content).hexdigest() != expected["sha256"]:
            return f"the sha256 of {name} differs from the manifest's"
    return None
