"""Trees of tensors and counters <-> the files of a checkpoint, on any number of ranks.

A thread writes while training goes on: the files, then the manifest. Each machine reads the files once.
"""

import json
import logging
import pickle
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent import futures
from contextlib import ExitStack, contextmanager
from functools import partial
from operator import itemgetter
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load as load_state_dict
from torch.distributed.checkpoint.state_dict_saver import save as save_state_dict

from tips_ray import storage
from tips_ray.checkpoint_pickles import METADATA, BlockReader, PlainPlanner, PlainReader
from tips_ray.distributed import background_group, gather_objects, rank, world_size
from tips_ray.runs.checkpoint import (
    VERSION,
    CheckpointInfo,
    fetch_files,
    load_error,
    manifest_of,
    remove_checkpoint,
    uri_of,
)
from tips_ray.runs.checkpoint_blocks import DamagedBlockError, file_entry, has_blocks
from tips_ray.runs.lease import LeaseLostError
from tips_ray.storage.local import locked_temporary_folder

Result = TypeVar("Result")
log = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes `checkpoints_uri/step-XXXXXXXX` in the background, one at a time.

    Every rank has one, and calls it equally often from its main thread. The threads of all ranks meet in a process
    group of their own.
    """

    def __init__(
        self,
        checkpoints_uri: str,
        fingerprints: Mapping[str, str],
        device: torch.device | str = "cpu",
        patience_seconds: float = 0,
        before_write: Callable[[], object] = lambda: None,
        after_commit: Callable[[int], object] = lambda step: None,
        with_files: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Args:
            checkpoints_uri: folder or s3:// prefix that holds the run's checkpoints.
            fingerprints: of config and data; kept in the manifest.
            device: of the states to come; from an accelerator they are copied to pinned memory.
            patience_seconds: longest time that a file is retried while the storage does not answer.
            before_write: called by rank 0 before a file is written or deleted and before the manifest; it raises
                `LeaseLostError` when another start owns the folder.
            with_files: called by every rank, in the background, before the manifest: writes what belongs to the state.
            after_commit: called with the step by rank 0, in the background, before the checkpoint counts as committed.
        """
        self.checkpoints_uri, self.fingerprints = checkpoints_uri, fingerprints
        self.patience_seconds, self.before_write, self.after_commit = patience_seconds, before_write, after_commit
        self.with_files = with_files
        is_pinned = torch.device(device).type == "cuda"
        self._stager = DefaultStager(
            StagingOptions(is_pinned, False, False, is_pinned)
        )  # keeps its memory for the next
        # A thread begins on GPU 0, whatever GPU its rank has, and whatever it asks of CUDA takes memory there.
        own_gpu = partial(torch.cuda.set_device, torch.cuda.current_device()) if is_pinned else None
        self._thread = futures.ThreadPoolExecutor(1, "checkpoint", own_gpu)
        self._group, self._rank = background_group(), rank()  # the thread asks neither again: the group may have ended
        self._saving: futures.Future[tuple[CheckpointInfo, float]] | None = None

    def start(self, tree: dict[str, Any], counters: Mapping[str, int]) -> None:
        """Copy this rank's shards of `tree` to host memory; its tensors may change as soon as this returns.

        Args:
            tree: nested names -> tensors.
            counters: `step` and other values for the manifest.
        """
        assert self._saving is None, "the former save is still in flight"
        started = time.perf_counter()
        staged = self._stager.stage(tree)
        assert isinstance(staged, dict)
        manifest = {"version": VERSION, **counters, **self.fingerprints}
        self._saving = self._thread.submit(self._commit, staged, manifest, started)

    def committed(self, wait: bool = False) -> tuple[CheckpointInfo, float] | None:
        """The checkpoint in flight and the seconds since its start, once all ranks have written it; returned only once.

        All ranks get the same answer: a collective while a save is in flight, no collective otherwise.

        Args:
            wait: for the save in flight, if there is one.

        Raises:
            StorageError: the save failed on some rank; all ranks raise the same. Older checkpoints stay.
            RuntimeError: it failed in another way, such as by a lost rank.
        """
        if self._saving is None:
            return None
        if wait:
            self.wait()
        is_done = self._saving.done()
        outcomes = gather_objects((is_done, self._saving.exception() if is_done else None))
        if not all(done for done, _ in outcomes):
            return None
        saving, self._saving = self._saving, None
        _raise_first(fault for _, fault in outcomes)
        return saving.result()

    def wait(self) -> None:
        """Wait until this rank's part of the save in flight has succeeded or failed; no collective."""
        if self._saving is not None:
            futures.wait([self._saving])

    def close(self) -> None:
        """Release thread and memory; call it once all ranks have waited."""
        self._thread.shutdown()
        self._stager.close()
        if self._group is not None:
            dist.destroy_process_group(self._group)

    def _commit(self, tree: dict[str, Any], manifest: dict[str, Any], started: float) -> tuple[CheckpointInfo, float]:
        """Body of the thread. A save that fails on one rank fails on all."""
        step, uri = manifest["step"], uri_of(self.checkpoints_uri, manifest["step"])
        try:
            self._on_rank_0(lambda: self._if_owned(remove_checkpoint, uri))  # a damaged one, or what a kill left of one
            manifest["files"] = self._write_files(tree, uri)
            text = json.dumps(manifest, indent=1)
            self._on_rank_0(lambda: self._if_owned(storage.write_text, manifest_of(uri), text))
        except LeaseLostError:
            raise  # what lies there may be the other start's
        except storage.StorageError as error:
            self._then(lambda: remove_checkpoint(uri))  # the storage may be full
            text = f"the checkpoint of step {step} was not saved, older ones stand: {error}"
            raise storage.StorageError(text, error.may_pass) from error
        self._then(lambda: self.after_commit(step))
        return CheckpointInfo(uri, step, manifest), time.perf_counter() - started

    def _if_owned(self, action: Callable[..., object], *arguments: str) -> None:
        self.before_write()
        action(*arguments)

    def _write_files(self, tree: dict[str, Any], uri: str) -> dict[str, Any]:
        """Write all ranks' files, each by way of a local folder; returns their entries in the manifest."""
        with ExitStack() as stack:
            local = self._on_all_ranks(lambda: stack.enter_context(locked_temporary_folder()))[self._rank]
            self._write_shards(tree, local)
            parts = self._on_all_ranks(lambda: self._published(local, uri))
        return {name: entry for part in parts for name, entry in part.items()}

    def _write_shards(self, tree: dict[str, Any], folder: Path) -> None:
        is_alone = self._group is None
        try:
            with one_process_is_fine():
                save_state_dict(tree, storage_writer=_Writer(folder), process_group=self._group, no_dist=is_alone)
        except CheckpointException as error:  # raised on all ranks; it is no `Exception`
            _, (fault, _) = min(error.failures.items(), key=itemgetter(0))
            raise storage.failure(str(folder), fault) from error

    def _published(self, folder: Path, uri: str) -> dict[str, dict[str, Any]]:
        storage.keep_trying(self.with_files, self.patience_seconds)
        return {path.name: self._uploaded(path, storage.join(uri, path.name)) for path in sorted(folder.iterdir())}

    def _uploaded(self, path: Path, uri: str) -> dict[str, Any]:
        storage.keep_trying(lambda: storage.upload(path, uri), self.patience_seconds)
        return file_entry(path)

    def _on_rank_0(self, action: Callable[[], Any]) -> None:
        patient = partial(storage.keep_trying, action, self.patience_seconds)
        self._on_all_ranks(patient if self._rank == 0 else lambda: None)

    def _on_all_ranks(self, action: Callable[[], Result]) -> list[Result]:
        """Results of `action` on each rank; ranks wait for each other, and all raise the first rank's error."""
        try:
            own, fault = action(), None
        except storage.StorageError as error:
            own, fault = None, error
        except Exception as error:  # whatever it is, the others must not wait for this rank
            own, fault = None, RuntimeError(f"{type(error).__name__}: {error}")
        if self._group is not None and not dist.is_initialized():
            raise RuntimeError("the process group was ended during a save: torch may have taken this rank for all")
        outcomes = gather_objects((own, fault), self._group)
        _raise_first(fault for _, fault in outcomes)
        return [result for result, _ in outcomes]

    def _then(self, action: Callable[[], Any]) -> None:
        """Clean up on rank 0 after the outcome is decided; the next checkpoint retries what fails here."""
        if self._rank == 0:
            try:
                action()
            except storage.StorageError as error:
                log.warning("old or unfinished checkpoints stay for now: %s", error)


class _Writer(FileSystemWriter):
    """Raises the system's own error, such as a full disk, which torch hides behind another one.

    It copies nothing ahead: the tensors are on the host, and to copy ahead torch would wait for the training stream.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, per_thread_copy_ahead=0)

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Any:
        try:
            return super().write_data(plan, planner)
        except Exception as error:
            cause: BaseException | None = error
            while cause and not isinstance(cause, OSError):
                cause = cause.__cause__ or cause.__context__
            raise cause or error from None


def save_tree(
    tree: dict[str, Any], counters: Mapping[str, int], checkpoints_uri: str, fingerprints: Mapping[str, str]
) -> CheckpointInfo:
    """Write one checkpoint and wait for it; every rank calls this.

    Raises:
        StorageError: as `CheckpointWriter.committed`.
    """
    writer = CheckpointWriter(checkpoints_uri, fingerprints)
    try:
        writer.start(tree, counters)
        saved = writer.committed(wait=True)
    finally:
        writer.close()
    assert saved is not None
    return saved[0]


def fill_tree(tree: dict[str, Any], checkpoint: CheckpointInfo) -> None:
    """Fill the tensors of `tree`, a part of what a checkpoint holds, in place; all ranks call it, each for its shards.

    Each rank reads and verifies the blocks that hold its shards. Of a checkpoint of an earlier version, which has a
    sha256 of whole files alone, each machine fetches all files once.

    Raises:
        DamagedCheckpointError: a file is missing or differs from the manifest; every rank raises.
        StorageError: the files cannot be read, or hold pickles that could run code; every rank raises.
    """
    is_in_blocks = has_blocks(checkpoint.manifest["files"])
    with _fetched(checkpoint, only=(METADATA,) if is_in_blocks else None) as folder, one_process_is_fine():
        reader = BlockReader(folder, checkpoint) if is_in_blocks else PlainReader(folder)
        planner = PlainPlanner()
        try:
            load_state_dict(tree, storage_reader=reader, planner=planner, no_dist=world_size() == 1)
        except CheckpointException as error:  # raised on all ranks
            fault = reader.refused or min(error.failures.items(), key=itemgetter(0))[1][0]
            if isinstance(fault, (DamagedBlockError, storage.StorageError)):
                raise load_error(checkpoint, fault) from None
            if not isinstance(fault, pickle.UnpicklingError):
                raise
            raise storage.StorageError(
                f"checkpoint {checkpoint.uri} is refused: it holds pickled objects that no checkpoint of tips_ray "
                f"has and that could run code ({fault}); take one whose writer you trust"
            ) from None


@contextmanager
def one_process_is_fine() -> Iterator[None]:
    """Silence torch's warning of a missing process group, which it gives even with `no_dist`."""
    if world_size() > 1:
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


@contextmanager
def _fetched(checkpoint: CheckpointInfo, only: Collection[str] | None) -> Iterator[Path]:
    """A local folder with `only` these files, or all, read and verified by one rank of each machine for all there.

    Ranks are on one machine if they see the same temporary folder: host names may repeat on several or differ on one.
    """
    with locked_temporary_folder() as own:
        folder = next(path for path in gather_objects(own) if path.is_dir())
        faults = gather_objects(fetch_files(checkpoint, own, only) if folder == own else None)
        fault = next(filter(None, faults), None)
        if fault:
            raise fault
        yield folder
        gather_objects(None)  # the folder's owner waits for its readers


def _raise_first(faults: Iterable[BaseException | None]) -> None:
    fault = next(filter(None, faults), None)
    if fault is not None:
        raise fault
