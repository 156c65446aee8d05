"""Failures of a training run: one sentence for the user, the traceback in the run folder."""

import signal
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from tips_ray import storage
from tips_ray.errors import RunFailedError, RunInterrupted, RunPaused, RunStopped, described, root_cause
from tips_ray.memory_kills import memory_kills, memory_kills_since
from tips_ray.runs import RunFolder, checkpoints_of, list_checkpoints
from tips_ray.train.collapse import CollapseError
from tips_ray.train.graceful_stop import GracefulStop, Paused

OTHER_CONFIG = "a run keeps its learning rate, temperatures and the like: give the changed config another name="


@contextmanager
def failures_as_sentences(folder: RunFolder, kinds: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turn errors of `kinds` into `RunFailedError`, and Ctrl-C, also as Ray Train handles it, into `RunInterrupted`.

    A run that was asked to stop, and has saved, ends with `RunStopped`, one that was to pause with `RunPaused`.

    Args:
        folder: of the run.
        kinds: errors that the trainer raises.
    """
    before = memory_kills()
    try:
        with _own_interrupts():
            yield
    except KeyboardInterrupt:
        raise RunInterrupted(f"interrupted{_reached(folder)}; {_resumes(folder)}") from None
    except kinds as error:
        cause = root_cause(error)
        if isinstance(cause, Paused):
            raise RunPaused(str(cause)) from None
        if isinstance(cause, GracefulStop):
            raise RunStopped(f"{cause}{_reached(folder)}, which is saved; {_resumes(folder)}") from None
        kept, words = _write_traceback(folder), f"{described(error)}{memory_kills_since(before)}"
        is_of_config = isinstance(cause, CollapseError)
        next_start = OTHER_CONFIG if is_of_config else f"once that is mended, {_resumes(folder)}"
        raise RunFailedError(f"training stopped{_reached(folder)}: {words}; {next_start}; {kept}") from None


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Undo Ray Train's Ctrl-C handler, which ends its controller, exits with code 0, and stays installed."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        if is_main:
            signal.signal(signal.SIGINT, handler)


@contextmanager
def root_causes_raised() -> Iterator[None]:
    """Re-raise the task's own exception, without Ray's traceback."""
    from ray.exceptions import RayError

    try:
        yield
    except RayError as error:
        raise root_cause(error) from None


def _reached(folder: RunFolder) -> str:
    """The last logged step in words; empty if the storage does not answer, because the cause matters more."""
    try:
        metrics = folder.read_metrics()
    except storage.StorageError:
        return ""
    return f" at step {metrics[-1]['step'] if metrics else 0}"


def _resumes(folder: RunFolder) -> str:
    try:
        found = list_checkpoints(checkpoints_of(folder.uri))
    except storage.StorageError:
        return "the same command resumes from the newest checkpoint"
    if found:
        return f"the same command resumes from step {found[-1].step}"
    return "the same command starts again from step 0, since there is no checkpoint yet"


def _write_traceback(folder: RunFolder) -> str:
    """Write the error that is being handled to the next free number; returns words about the file."""
    content = traceback.format_exc()
    try:
        number = 1 + len(storage.list_names(storage.join(folder.uri, "errors")))
        while not storage.create_text(uri := storage.join(folder.uri, "errors", f"attempt-{number:04d}.txt"), content):
            number += 1
    except storage.StorageError as error:
        return f"its traceback is not kept: {error}"
    return f"the traceback is in {uri}"
