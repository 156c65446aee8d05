"""TrainState <-> a checkpoint, on any number of ranks."""

from collections.abc import Mapping
from typing import Any

from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from tips_ray.checkpoint_io import fill_tree, save_tree
from tips_ray.runs.checkpoint import CheckpointInfo
from tips_ray.train.optim import fill_averages
from tips_ray.train.state import TrainState

NETWORKS = ("student", "teacher", "centers")


def checkpoint_parts(state: TrainState) -> tuple[dict[str, Any], dict[str, int]]:
    """The tensors of a checkpoint, as the state holds them, and its counters."""
    fill_averages(state.optimizer)
    tree: dict[str, Any] = {name: get_model_state_dict(getattr(state, name)) for name in NETWORKS}
    tree["optimizer"] = get_optimizer_state_dict(state.student, state.optimizer)
    return tree, {"step": state.step, "bad_rows": state.bad_rows, "skipped_steps": state.skipped_steps}


def save_checkpoint(state: TrainState, checkpoints_uri: str, fingerprints: Mapping[str, str]) -> CheckpointInfo:
    """Write one checkpoint and wait for it; every rank calls this.

    Raises:
        StorageError: as `CheckpointWriter.committed`.
    """
    return save_tree(*checkpoint_parts(state), checkpoints_uri, fingerprints)


def load_checkpoint(state: TrainState, checkpoint: CheckpointInfo) -> None:
    """Fill `state` in place, on any number of ranks; all of them call this. Files are read once per machine.

    Raises:
        DamagedCheckpointError: a file is missing or differs from the manifest; every rank raises.
    """
    tree, _ = checkpoint_parts(state)
    fill_tree(tree, checkpoint)
    for name in NETWORKS:
        set_model_state_dict(getattr(state, name), tree[name])
    set_optimizer_state_dict(state.student, state.optimizer, optim_state_dict=tree["optimizer"])
    state.step, state.bad_rows = checkpoint.step, checkpoint.manifest["bad_rows"]
    state.skipped_steps = checkpoint.manifest["skipped_steps"]
