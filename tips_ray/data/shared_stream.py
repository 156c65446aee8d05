"""The training stream for many workers: readers read every window once, and each worker takes its own rows from them.

m rows of a micro-batch, W workers, R readers. Window w is read by reader w mod R, and micro-batch k from the start
belongs to worker k mod W: both are pure functions, so that no process deals (docs/decisions/0017). A worker asks the
reader for its rows of a window and hands the references to tasks that make the views; it never holds encoded rows.
"""

import asyncio
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from math import ceil
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np
import ray
from ray import ObjectRef
from ray.actor import ActorHandle

from tips_ray.config import RunConfig
from tips_ray.data.deal import Deal
from tips_ray.data.index_folder import opened_index
from tips_ray.data.order import Order
from tips_ray.data.pipeline import waiting_for
from tips_ray.data.stream import CaptionAccess, order_of, ordered_rows, read_chunks, views, window_bytes, window_rows
from tips_ray.ray_data_adapter import OF_ACTORS, OF_TASKS, leave_half_imported, near
from tips_ray.words import bytes_text

WINDOWS_AT_ONCE = 2
"""Windows that a reader reads at a time."""
READER_BYTES = 300 << 20
"""Memory of a reader beside its windows: Python, the index and the order."""

Rows = list[dict[str, Any]]


class Bounds(NamedTuple):
    """How far a shared stream reads ahead, by arithmetic."""

    micro_batches: int
    """Of one worker whose views are made or ready."""
    windows: int
    """Windows that readers are asked for beyond the last micro-batch whose views are being made."""
    held: int
    """Most windows that one reader holds."""
    reader_bytes: int
    """Memory that one reader needs."""


@dataclass(frozen=True)
class SharedStream:
    """Training rows of the steps [start_step, total_steps), before it is known how many workers there are."""

    config: RunConfig
    index_uri: str
    tokenizer_uri: str
    captions: CaptionAccess | None
    start_step: int

    def deal(self, workers: int) -> Deal:
        """Who gets what."""
        config = self.config
        start, stop = (step * config.global_batch_images for step in (self.start_step, config.schedule.total_steps))
        return Deal(start, stop, config.images_per_pass, workers)

    def bounds(self, workers: int, prefetch_batches: int) -> Bounds:
        """What is read and made ahead for so many workers, which are at most a step apart.

        All windows that are held lie in one stretch of the order: the micro-batches in the making, a step, and what is
        asked for beyond.
        """
        config, uri = self.config, self.index_uri
        micro_batches = prefetch_batches + -(-config.resources.data_cpus // workers)
        stretch = micro_batches * workers * config.images_per_pass + config.global_batch_images
        readers = config.resources.stream_readers
        windows = ceil(stretch / window_rows(config, uri)) + readers + 2  # 2: it begins and ends inside windows
        held = ceil(windows / readers)
        return Bounds(micro_batches, readers + 1, held, READER_BYTES + held * window_bytes(config, uri))

    def split(self, workers: int) -> list["WorkerStream"]:
        """The streams of the workers, by rank. Readers end with the calling process.

        Raises:
            ValueError: nodes lack the memory that readers need.
        """
        bounds = self.bounds(workers, self.config.data_prefetch_batches)
        homes = _homes(self.config, bounds.reader_bytes)
        options: dict[str, Any] = {**OF_ACTORS, "num_cpus": 0, "memory": bounds.reader_bytes}
        options["max_concurrency"] = 1000 + 2 * workers * bounds.held  # a call waits while its window is read
        reader: Any = ray.remote(WindowReader)
        readers = [
            reader.options(**options, scheduling_strategy=near(home)).remote(self, workers, bounds.held)
            for home in homes
        ]
        return [WorkerStream(self, readers, workers, rank) for rank in range(workers)]


def _homes(config: RunConfig, reader_bytes: int) -> list[str]:
    """Id of the node on which each reader starts, on all nodes in turn; they go on elsewhere when a node is lost."""
    kind, readers = "data" if config.resources.roles else "CPU", config.resources.stream_readers
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get(kind)]
    rooms = {node["NodeID"]: int(node["Resources"].get("memory", 0) // reader_bytes) for node in nodes}
    if nodes and sum(rooms.values()) < readers:
        most = max(node["Resources"].get("memory", 0) for node in nodes)
        others = f", as do {readers - 1} others," if readers > 1 else ""
        raise ValueError(
            f"a reader of the data needs {bytes_text(reader_bytes)} of memory{others} and nodes offer at most "
            f"{bytes_text(most)}, room for {sum(rooms.values())} in all: give nodes more memory, lower "
            "data_prefetch_batches or resources.data_cpus, or set resources.stream=split"
        )
    turns = [home for turn in range(readers) for home in sorted(rooms) if rooms[home] > turn]
    return turns[:readers] or [ray.get_runtime_context().get_node_id()] * readers


class _Window(NamedTuple):
    """A window that a reader holds."""

    rows: "asyncio.Future[Rows]"
    left: set[int]
    """Workers that have not asked for their rows."""


class WindowReader:
    """An actor that reads each of its windows once, for all workers, and drops it when all have their rows.

    It holds no CPU, because it mostly waits. A reader that is lost starts again elsewhere; what workers had not got
    yet, or lose with a node, is then asked for again by Ray and read again.
    """

    def __init__(self, stream: SharedStream, workers: int, held: int) -> None:
        """`held`: most windows that are kept; beyond, the lowest is dropped, and read again if it is asked for."""
        self._stream, self._deal, self._most = stream, stream.deal(workers), held
        self._windows: dict[int, _Window] = {}
        self._pool = ThreadPoolExecutor(WINDOWS_AT_ONCE, "windows")
        self._order = self._pool.submit(self._opened)  # takes seconds for large data; workers start meanwhile
        self._bytes_read = 0

    def _opened(self) -> Order:
        order = order_of(self._stream.config, self._stream.index_uri)
        order.window_of(self._deal.start)
        return order

    async def part(self, window: int, rank: int) -> Any:
        """A worker's rows of a window: one list for each of its micro-batches, not in a list where there is only one.

        Raises:
            ValueError: the window cannot be read, or its captions will not be made.
        """
        order = await asyncio.wrap_future(self._order)
        first, last = order.window_start(window), order.window_start(window + 1)
        first, last = max(first, self._deal.start), min(last, self._deal.stop)
        found = self._windows.get(window)
        if found is None:
            rows = asyncio.ensure_future(self._read(window))
            found = self._windows[window] = _Window(rows, self._deal.receivers(first, last))
            while len(self._windows) > self._most:
                del self._windows[min(self._windows)]  # this one too, where an object of long ago was lost
        rows = await asyncio.shield(found.rows)  # others wait for it too
        found.left.discard(rank)
        if not found.left:
            self._windows.pop(window, None)
        return _cut(rows, self._deal, rank, first, last)

    async def bytes_read(self) -> int:
        """Bytes of all images that were read, also of those that no worker got."""
        return self._bytes_read

    async def _read(self, window: int) -> Rows:
        captions = self._stream.captions
        if captions and captions.coordinator:
            await captions.coordinator.admit.remote(window)
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._read_now, window)

    def _read_now(self, window: int) -> Rows:
        stream, captions = self._stream, self._stream.captions
        rows = self._order.result().window_rows(window).between(self._deal.start, self._deal.stop)
        waiting = waiting_for(captions.coordinator, stream.config) if captions and captions.coordinator else None
        chunks = read_chunks(opened_index(stream.index_uri), rows, captions.store if captions else None, waiting)
        self._bytes_read += sum(len(row["image"]) for chunk in chunks.values() for row in chunk)
        return ordered_rows(rows, chunks)


def _cut(rows: Rows, deal: Deal, rank: int, first: int, last: int) -> Any:
    """The rows at positions [first, last) that are a worker's, cut at the borders of its micro-batches."""
    parts = []
    for number in deal.micro_batches(rank, first, last):
        start, stop = deal.positions(number)
        parts.append(rows[max(start - first, 0) : stop - first])
    return parts[0] if len(parts) == 1 else parts


@dataclass(frozen=True)
class WorkerStream:
    """The stream of one worker, with the one method of Ray Data's iterators that training uses. Picklable."""

    stream: SharedStream
    readers: list[ActorHandle]
    workers: int
    rank: int

    def iter_batches(
        self, batch_size: int, prefetch_batches: int = 1, batch_format: str = "numpy"
    ) -> Iterator[dict[str, np.ndarray]]:
        """The worker's micro-batches in order, as columns of training rows, read-only arrays.

        Args:
            batch_size: must be the rows of a micro-batch.
            prefetch_batches: micro-batches that are kept ready, beside those whose views are being made.
            batch_format: must be "numpy".

        Raises:
            RayTaskError: around the error of a reader or of a task that makes views.
        """
        assert batch_size == self.deal.rows and batch_format == "numpy"
        bounds = self.stream.bounds(self.workers, prefetch_batches)
        make_views, due = _view_maker(self.stream), deque[ObjectRef]()
        fetched: SimpleQueue[ObjectRef | None] = SimpleQueue()
        threading.Thread(target=_fetch, args=(fetched,), name="views", daemon=True).start()
        try:
            for parts in self.micro_batches(bounds.windows):
                due.append(make_views(*parts))
                fetched.put(due[-1])
                if len(due) >= max(bounds.micro_batches, 1):
                    yield ray.get(due.popleft())
            while due:
                yield ray.get(due.popleft())
        finally:
            fetched.put(None)

    @cached_property
    def deal(self) -> Deal:
        return self.stream.deal(self.workers)

    def micro_batches(self, windows_ahead: int) -> Iterator[list[ObjectRef]]:
        """References to the encoded rows of each micro-batch, one for each window that they lie in.

        Readers are asked `windows_ahead` windows before the last one that the micro-batch needs.
        """
        deal, order = self.deal, order_of(self.stream.config, self.stream.index_uri)
        parts, asked = defaultdict[int, list[ObjectRef]](list), order.window_of(deal.start)
        for number in deal.micro_batches(self.rank, deal.start, deal.stop):
            last = order.window_of(deal.positions(number)[1] - 1)
            while asked <= last + windows_ahead and order.window_start(asked) < deal.stop:
                borders = order.window_start(asked), order.window_start(asked + 1)
                for own, part in self._asked(asked, deal.micro_batches(self.rank, *borders)):
                    parts[own].append(part)
                asked += 1
            yield parts.pop(number)

    def _asked(self, window: int, numbers: range) -> Iterator[tuple[int, ObjectRef]]:
        """This worker's micro-batches that have rows in a window, and references to those rows."""
        if not numbers:
            return
        reader = self.readers[window % len(self.readers)]
        found = reader.part.options(num_returns=len(numbers)).remote(window, self.rank)
        yield from zip(numbers, [found] if len(numbers) == 1 else found, strict=True)


def _view_maker(stream: SharedStream) -> Callable[..., ObjectRef]:
    """A task that makes the views of a micro-batch from its rows: on this node, or where a CPU is free."""
    config, tokenizer_uri = stream.config, stream.tokenizer_uri

    def views_of(*parts: Rows) -> dict[str, np.ndarray]:
        leave_half_imported()
        return views([row for part in parts for row in part], config, tokenizer_uri)

    task: Any = ray.remote(views_of)
    here = near(ray.get_runtime_context().get_node_id())
    options = {**OF_TASKS, "num_cpus": 1, "scheduling_strategy": here}
    return task.options(**options, resources=config.resources.role("data")).remote


def _fetch(refs: "SimpleQueue[ObjectRef | None]") -> None:
    """Bring results to this node as soon as they are there, so that the worker does not wait for the network."""
    while (ref := refs.get()) is not None:
        ray.wait([ref])
