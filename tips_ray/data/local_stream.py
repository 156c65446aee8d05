"""The stream of one rank without Ray: the micro-batches that Ray Data would deal to it, made by data processes.

m rows of a micro-batch, W ranks. Micro-batch k from the start of the stream belongs to rank k mod W, as in
`data.pipeline`. The rank's own process reads window after window, one ahead; the processes of a torch DataLoader make
the views, so that a chunk is read once per rank and window, whatever their number.
"""

import atexit
import multiprocessing
import os
import signal
import threading
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from tips_ray.config import RunConfig
from tips_ray.data.index_folder import opened_index
from tips_ray.data.order import OrderedRows
from tips_ray.data.stream import CaptionAccess, order_of, ordered_rows, read_chunks, views
from tips_ray.memory_kills import memory_kills, memory_kills_since

LEAVE_SECONDS = 120
"""How long a data process outlives a signal of a scheduler; it ends with its rank at once."""
SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""A scheduler sends them to all processes of a job."""


class StreamError(RuntimeError):
    """This rank's data could not be read; the message says why. Other ranks do not know of it."""


def local_stream(
    config: RunConfig,
    index_uri: str,
    tokenizer_uri: str,
    captions: CaptionAccess | None,
    start_step: int,
    rank: int,
    ranks: int,
    processes: int,
    pin_memory: bool = False,
) -> Iterator[dict[str, np.ndarray]]:
    """This rank's micro-batches of the steps [start_step, total_steps) as columns of training rows.

    Args:
        config: of the run.
        index_uri: of the data.
        tokenizer_uri: of the run's vocabulary.
        captions: access to captions outside the data; None: the data hold them.
        start_step: the first step to stream.
        rank: of the reader.
        ranks: W; W x m must divide the global batch.
        processes: number of data processes that make views for this rank.
        pin_memory: copy the columns to pinned memory, for a GPU.

    Raises:
        StreamError: the data cannot be read, or a data process died.
    """
    ready = -(-config.data_prefetch_batches // processes)
    context = multiprocessing.get_context("forkserver")  # a plain fork would copy locks that the rank's threads hold
    context.set_forkserver_preload([__name__, "tips_ray.data.fork_server"])
    _start_fork_server()
    loader = DataLoader(
        _Views(config, tokenizer_uri),
        batch_size=None,
        sampler=own_rows(config, index_uri, captions, start_step, rank, ranks),  # pyright: ignore[reportArgumentType]
        num_workers=processes,
        prefetch_factor=max(ready, 1),
        pin_memory=pin_memory,
        multiprocessing_context=context,
        worker_init_fn=_end_with_rank,
    )
    kills, others = memory_kills(), set(multiprocessing.active_children())
    try:
        batches = iter(loader)
        atexit.register(_kill, set(multiprocessing.active_children()) - others)
        for columns in batches:
            yield {name: _array(column) for name, column in columns.items()}
    except Exception as error:
        raise StreamError(_sentence(error, kills)) from error


def own_rows(
    config: RunConfig, index_uri: str, captions: CaptionAccess | None, start_step: int, rank: int, ranks: int
) -> Generator[list[dict[str, Any]]]:
    """Encoded rows of this rank's micro-batches, in order."""
    rows = _rows(config, index_uri, captions, start_step, rank, ranks)
    while micro_batch := list(islice(rows, config.images_per_pass)):
        yield micro_batch


def _rows(
    config: RunConfig, index_uri: str, captions: CaptionAccess | None, start_step: int, rank: int, ranks: int
) -> Iterator[dict[str, Any]]:
    """Encoded rows of this rank, one by one; at most two windows are held."""
    index, order, store = opened_index(index_uri), order_of(config, index_uri), captions.store if captions else None
    start, stop = (step * config.global_batch_images for step in (start_step, config.schedule.total_steps))

    def read(window: int) -> list[dict[str, Any]]:
        rows = order.window_rows(window).between(start, stop)
        is_own = (rows.position_N - start) // config.images_per_pass % ranks == rank
        own = OrderedRows(*(column[is_own] for column in rows))
        return ordered_rows(own, read_chunks(index, own, store))

    windows = order.windows(start, stop)
    with ThreadPoolExecutor(1, "windows") as pool:
        ahead = pool.submit(read, windows[0]) if windows else None
        for window in windows:
            assert ahead is not None
            rows = ahead.result()
            ahead = pool.submit(read, window + 1) if window + 1 in windows else None
            yield from rows


class _Views(Dataset):
    """Rows -> training rows, in a data process; the rows themselves are the DataLoader's indices."""

    def __init__(self, config: RunConfig, tokenizer_uri: str) -> None:
        self.config, self.tokenizer_uri = config, tokenizer_uri

    def __getitem__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {name: _shared(column) for name, column in views(rows, self.config, self.tokenizer_uri).items()}


def _shared(column: np.ndarray) -> Any:
    """Numbers as a tensor in shared memory; texts stay as they are.

    The loader would do the same in a thread of the data process. Where the memory is full, that thread drops the batch,
    and the rank waits for it for ever; here the error reaches the rank.
    """
    if column.dtype.kind in "SUO":
        return column
    tensor = torch.from_numpy(column)
    return tensor.share_memory_() if tensor.numel() else tensor


def _start_fork_server() -> None:
    """Start the process that forks data processes, with a scheduler's signals blocked.

    A signal would end it, and its children with their own answers to signals would count as dead. `fork_server`
    unblocks them in its children.
    """
    resource_tracker.ensure_running()  # it unblocks signals, so it comes first
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_rank(process: int) -> None:
    """End a data process when its rank has ended in any way; the loader's own watch only sees the fork server.

    A scheduler signals all processes of a job: this one goes on for as long as its rank may take to save and leave.
    """
    for number in SIGNALS:
        signal.signal(number, lambda number, frame: _end_later(128 + number))
    rank = multiprocessing.parent_process()
    assert rank is not None

    def watch() -> None:
        wait([rank.sentinel])
        os._exit(1)

    threading.Thread(target=watch, name="rank", daemon=True).start()


def _kill(processes: set[Any]) -> None:
    """End data processes as their rank exits: multiprocessing sends SIGTERM, which they heed late, and waits."""
    for process in processes:
        process.kill()


def _end_later(code: int) -> None:
    timer = threading.Timer(LEAVE_SECONDS, os._exit, [code])
    timer.daemon = True
    timer.start()


def _array(column: Any) -> np.ndarray:
    return column.numpy() if isinstance(column, torch.Tensor) else column


def _sentence(error: Exception, kills: int) -> str:
    """`kills`: what `memory_kills` was before."""
    text = str(error).strip().splitlines()[-1:] or [type(error).__name__]
    if "shared memory" in text[0] and "No space left" in text[0]:
        return (
            "shared memory (/dev/shm), in which data processes pass batches, is full: give the container more (docker "
            "run --shm-size=2g), end other programs that fill it, or lower data_prefetch_batches or micro_batch_images"
        )
    if "exited unexpectedly" in str(error) or "killed by signal" in str(error):
        blamed = memory_kills_since(kills)
        cure = "use fewer resources.data_cpus" if blamed else "if it printed an error, that is the cause"
        return f"a data process was killed or crashed ({text[0]}){blamed}; {cure}"
    return text[0]
