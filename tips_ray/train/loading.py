"""A checkpoint -> TrainState, on any number of ranks; each machine reads the files once."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
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

from tips_ray.distributed import gather_objects
from tips_ray.runs.checkpoint import CheckpointInfo, fetch_files
from tips_ray.storage import StorageError
from tips_ray.train.held_folder import held_folder
from tips_ray.train.optim import fill_averages
from tips_ray.train.state import TrainState

_OPTIONS = StateDictOptions()


def load_checkpoint(state: TrainState, checkpoint: CheckpointInfo) -> None:
    """Fill `state` in place, on any number of ranks; all of them call this. Files are read once per machine.

    Raises:
        ValueError: a file is missing or differs from the manifest; every rank raises.
    """
    tree = state_tree(state)
    fill_from_checkpoint(tree, checkpoint)
    for name in ("student", "teacher", "centers"):
        set_model_state_dict(getattr(state, name), tree[name])
    set_optimizer_state_dict(state.student, state.optimizer, optim_state_dict=tree["optimizer"], options=_OPTIONS)
    state.step, state.bad_rows = checkpoint.step, checkpoint.manifest["bad_rows"]
    state.skipped_steps = checkpoint.manifest["skipped_steps"]


def fill_from_checkpoint(tree: dict[str, Any], checkpoint: CheckpointInfo) -> None:
    """Fill the tensors of `tree`, a part of what a checkpoint holds, in place; all ranks call it, each for its shards.

    Raises:
        ValueError: as for `load_checkpoint`.
    """
    with _fetched(checkpoint) as folder, one_process_is_fine():
        load_state_dict(tree, checkpoint_id=folder, no_dist=not dist.is_initialized())


def state_tree(state: TrainState) -> dict[str, Any]:
    fill_averages(state.optimizer)
    return {
        "student": get_model_state_dict(state.student),
        "teacher": get_model_state_dict(state.teacher),
        "centers": get_model_state_dict(state.centers),
        "optimizer": get_optimizer_state_dict(state.student, state.optimizer, options=_OPTIONS),
    }


@contextmanager
def one_process_is_fine() -> Iterator[None]:
    """torch warns of a missing process group even where it is told that there is none."""
    if dist.is_initialized():
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


@contextmanager
def _fetched(checkpoint: CheckpointInfo) -> Iterator[Path]:
    """A local folder with all files, read and verified by one rank of each machine for all ranks there.

    A machine is where the same temporary folders are: names of hosts may be the same on several, or differ on one.
    """
    with held_folder() as own:
        folder = next(path for path in gather_objects(own) if path.is_dir())
        faults = gather_objects(fetch_files(checkpoint, own) if folder == own else None)
        fault = next(filter(None, faults), None)
        if fault:
            raise StorageError(f"checkpoint {checkpoint.uri} cannot be loaded: {fault}", fault.may_pass)
        yield folder
        gather_objects(None)  # the folder's owner waits for its readers
