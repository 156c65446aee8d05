"""TrainState <-> a folder of torch.distributed.checkpoint files with a manifest written last.

A checkpoint without a manifest does not exist; one whose files do not match it is damaged and passed over.
"""

import hashlib
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_model_state_dict, get_optimizer_state_dict
from torch.distributed.checkpoint.state_dict import set_model_state_dict, set_optimizer_state_dict

from tips_ray import storage
from tips_ray.distributed import gather_objects, rank
from tips_ray.train.state import TrainState

VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class CheckpointInfo:
    """A checkpoint whose manifest is there."""

    uri: str
    step: int
    manifest: dict[str, Any]


def save_checkpoint(state: TrainState, checkpoints_uri: str, fingerprints: dict[str, str]) -> CheckpointInfo:
    """Write `checkpoints_uri/step-XXXXXXXX`; every rank calls this and every rank gets the result.

    Args:
        state: sharded or not.
        checkpoints_uri: folder or s3:// prefix that holds the run's checkpoints.
        fingerprints: of config and data; kept in the manifest.
    """
    uri = storage.join(checkpoints_uri, f"step-{state.step:08d}")
    with tempfile.TemporaryDirectory() as folder:
        dcp.save(_state_dict(state), checkpoint_id=folder, no_dist=not dist.is_initialized())
        files = _publish(Path(folder), uri)
    manifest = {"version": VERSION, "step": state.step, **fingerprints, "files": files}
    if rank() == 0:
        storage.write_text(storage.join(uri, MANIFEST), json.dumps(manifest, indent=1))
    return CheckpointInfo(uri, state.step, manifest)
