"""A checkpoint -> TrainState, on any number of ranks; each machine reads the files once."""

import fcntl
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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
from tips_ray.storage import StorageError
from tips_ray.train.checkpoint import CheckpointInfo, fetch_files
from tips_ray.train.optim import fill_averages
from tips_ray.train.state import TrainState

PREFIX, HELD = "tips_ray-load-", ".held"
"""Of local copies, and the file that is locked in each for as long as its process lives."""
NEW_SECONDS = 60.0
"""A younger copy may not be locked yet."""
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
    with _own_folder() as own:
        folder = next(path for path in gather_objects(own) if Path(path).is_dir())
        faults = gather_objects(fetch_files(checkpoint, Path(own)) if folder == own else None)
        fault = next(filter(None, faults), None)
        if fault:
            raise StorageError(f"checkpoint {checkpoint.uri} cannot be loaded: {fault}", fault.may_pass)
        yield Path(folder)
        gather_objects(None)  # the folder's owner waits for its readers


@contextmanager
def _own_folder() -> Iterator[str]:
    """A new one; what processes that were killed have left on this machine goes first."""
    for held in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{HELD}"):
        with suppress(OSError), held.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where its owner lives
            if time.time() - held.stat().st_mtime > NEW_SECONDS:
                shutil.rmtree(held.parent, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=PREFIX) as own, Path(own, HELD).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield own
