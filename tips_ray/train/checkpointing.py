"""TrainState <-> a checkpoint, on any number of ranks."""

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
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
STORED_AS = {"temperature.log_temperature": "log_temperature"}
"""Names of parameters -> their names in checkpoints, which are older than the module that holds the temperature."""
_OWN_NAMES = {stored: own for own, stored in STORED_AS.items()}


def checkpoint_parts(state: TrainState) -> tuple[dict[str, Any], dict[str, int]]:
    """The tensors of a checkpoint, as the state holds them, and its counters."""
    fill_averages(state.optimizer)
    tree: dict[str, Any] = {name: stored_weights(getattr(state, name)) for name in NETWORKS}
    tree["optimizer"] = _renamed(get_optimizer_state_dict(state.student, state.optimizer), STORED_AS)
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
        set_weights(getattr(state, name), tree[name])
    set_optimizer_state_dict(state.student, state.optimizer, optim_state_dict=_renamed(tree["optimizer"], _OWN_NAMES))
    state.step, state.bad_rows = checkpoint.step, checkpoint.manifest["bad_rows"]
    state.skipped_steps = checkpoint.manifest["skipped_steps"]


def stored_weights(network: nn.Module) -> dict[str, Any]:
    """Parameters and buffers, as the network holds them, under their names in a checkpoint."""
    return _renamed(get_model_state_dict(network), STORED_AS)


def set_weights(network: nn.Module, weights: Mapping[str, Any], options: StateDictOptions | None = None) -> None:
    """Give the network the weights of a checkpoint; all ranks call this, `options` are torch's."""
    set_model_state_dict(network, _renamed(dict(weights), _OWN_NAMES), options=options)


def _renamed(tree: Any, names: Mapping[str, str]) -> Any:
    """The tree of weights or of an optimizer with parameters under other names."""
    if isinstance(tree, dict):
        return {names.get(key, key): _renamed(value, names) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_renamed(value, names) for value in tree]
    return names.get(tree, tree) if isinstance(tree, str) else tree
