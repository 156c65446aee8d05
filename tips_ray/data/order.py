"""Which sample is at which position of a run: a pure function of (index, seed), in numpy, without I/O.

C chunks of the index, E chunks of an epoch, W windows of an epoch, N rows of a window or a batch.

The first source sets the epoch: every epoch is one pass over its chunks. Every further source is an endless sequence of
passes, each a permutation of all its chunks, and an epoch takes the next ones: by the end of epoch e source j has given
floor((e + 1) * share_j * rows_0 * chunks_j / rows_j) chunks. So its share of rows is exact over whole passes and off
by about a chunk at any other time, and a pass ends before the next begins. The source of each place in the epoch is
shuffled; the chunks of a source fill its places in their order.

Permutations sort splitmix64 keys instead of using numpy's generators, whose streams may change between releases.
"""

from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from math import ceil, floor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Int64s = NDArray[np.int64]
Integers = NDArray[np.integer]
_CHUNKS, _PLACES, _ROWS = 1, 2, 3  # keep permutations of one seed apart


class EpochPlan(NamedTuple):
    """The chunks of one epoch in order."""

    chunk_E: Int64s
    pass_E: Int64s
    """How often the chunk's source was passed before; for the first source this is the epoch."""
    window_start_W1: Int64s
    """Positions at which windows begin, and the end of the last one."""


class OrderedRows(NamedTuple):
    """Consecutive positions of a run and the rows there; int64, all of one length."""

    position_N: Int64s
    step_N: Int64s
    chunk_N: Int64s
    """Row of the index's chunk table."""
    row_N: Int64s
    """Row in the chunk."""
    sample_id_N: Int64s
    sample_key_N: Int64s

    def between(self, start: int, stop: int) -> "OrderedRows":
        """Those at positions [start, stop)."""
        first, last = np.searchsorted(self.position_N, (start, stop))
        return OrderedRows(*(column[first:last] for column in self))


class Order:
    """The order of a run. Cheap to pickle beyond its arrays; plans of the last epochs are cached."""

    def __init__(
        self,
        chunk_rows_C: Integers,
        first_sample_C: Integers,
        source_C: Integers,
        shares: Sequence[float],
        seed: int,
        window_chunks: int,
        global_batch_images: int,
    ) -> None:
        """
        Args:
            chunk_rows_C: rows of each chunk, all positive.
            first_sample_C: sample id of each chunk's first row.
            source_C: number of each chunk's source, ascending.
            shares: rows of each source per row of the first, whose own is 1.
            seed: of the run.
            window_chunks: chunks whose rows are shuffled together.
            global_batch_images: rows of a step.

        Raises:
            ValueError: a source has no chunk, or a share is not positive.
        """
        self._arguments = (chunk_rows_C, first_sample_C, source_C, tuple(shares))
        self._arguments += (seed, window_chunks, global_batch_images)
        self.seed, self.window_chunks, self.global_batch_images = seed, window_chunks, global_batch_images
        self.chunk_rows_C = np.asarray(chunk_rows_C, np.int64)
        self.first_sample_C = np.asarray(first_sample_C, np.int64)
        self._first_chunk = np.searchsorted(source_C, range(len(shares) + 1)).tolist()
        self._chunks = np.diff(self._first_chunk).tolist()
        _check(self._chunks, shares)
        self._source_rows = np.add.reduceat(self.chunk_rows_C, self._first_chunk[:-1]).tolist()
        scale = [self._source_rows[0] * Fraction(repr(float(share))) for share in shares]
        self._quota = [
            rows * count / total for rows, count, total in zip(scale, self._chunks, self._source_rows, strict=True)
        ]
        self.windows_per_epoch = ceil(sum(map(ceil, self._quota)) / window_chunks)
        self._rows_per_epoch = sum(scale)  # on average
        self._pass = lru_cache(2 * len(shares))(self._make_pass)
        self.epoch_plan = lru_cache(2)(self._make_epoch_plan)

    def __reduce__(self):
        return Order, self._arguments

    def epoch_start(self, epoch: int) -> int:
        """Position of the first row of an epoch."""
        return sum(self._rows_given(source, self._chunks_given(source, epoch)) for source in range(len(self._chunks)))

    def epoch_of(self, position: int) -> int:
        """The epoch that a position belongs to."""
        if position < 0:
            raise ValueError(f"position ({position}) must not be negative")
        epoch = floor(position / self._rows_per_epoch)  # a fraction: exact, and final where there is one source
        while self.epoch_start(epoch) > position:
            epoch -= 1
        while self.epoch_start(epoch + 1) <= position:
            epoch += 1
        return epoch

    def step_of(self, position: int) -> int:
        """The optimizer step that a position belongs to."""
        return position // self.global_batch_images

    def window_of(self, position: int) -> int:
        """Number over all epochs of the window that a position belongs to."""
        epoch = self.epoch_of(position)
        starts = self.epoch_plan(epoch).window_start_W1
        return epoch * self.windows_per_epoch + int(np.searchsorted(starts, position, side="right")) - 1

    def window_start(self, window: int) -> int:
        """Position of the first row of a window."""
        epoch, inside = divmod(window, self.windows_per_epoch)
        return int(self.epoch_plan(epoch).window_start_W1[inside])

    def windows(self, start: int, stop: int) -> range:
        """Numbers of the windows that positions [start, stop) lie in; the first and the last may reach beyond."""
        return range(self.window_of(start), self.window_of(stop - 1) + 1) if stop > start else range(0)

    def window_rows(self, window: int) -> OrderedRows:
        """All rows of a window, shuffled by (seed, epoch, window).

        With several sources the last window of an epoch may be empty: their chunks per epoch vary by one.
        """
        epoch, inside = divmod(window, self.windows_per_epoch)
        plan = self.epoch_plan(epoch)
        part = slice(inside * self.window_chunks, (inside + 1) * self.window_chunks)
        rows = self.chunk_rows_C[plan.chunk_E[part]]
        row_N = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
        shuffled = permutation(len(row_N), self.seed, _ROWS, epoch, inside)
        row_N = row_N[shuffled]
        chunk_N, pass_N = (np.repeat(column[part], rows)[shuffled] for column in (plan.chunk_E, plan.pass_E))
        position_N = plan.window_start_W1[inside] + np.arange(len(row_N))
        sample_id_N = self.first_sample_C[chunk_N] + row_N
        keys = sample_keys(self.seed, pass_N, sample_id_N)
        return OrderedRows(position_N, position_N // self.global_batch_images, chunk_N, row_N, sample_id_N, keys)

    def rows(self, start: int, stop: int) -> OrderedRows:
        """The rows at positions [start, stop)."""
        parts = [self.window_rows(window) for window in self.windows(start, stop)] or [self.window_rows(0)]
        return OrderedRows(*map(np.concatenate, zip(*parts, strict=True))).between(start, stop)

    def batch(self, step: int) -> OrderedRows:
        """The global batch of a step: positions [step * G, (step + 1) * G)."""
        return self.rows(step * self.global_batch_images, (step + 1) * self.global_batch_images)

    def first_uses(self, stop: int | None = None) -> tuple[Int64s, Int64s]:
        """Windows and chunks that positions before `stop` use for the first time, in the order of the run.

        Without `stop`: all chunks.
        """
        until_all = max(ceil(count / quota) for count, quota in zip(self._chunks, self._quota, strict=True))
        stop = self.epoch_start(until_all) if stop is None else stop
        if stop <= 0:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        last = self.window_of(stop - 1)
        windows, chunks = [], []
        for epoch in range(min(last // self.windows_per_epoch + 1, until_all)):
            plan = self.epoch_plan(epoch)
            first_E = np.flatnonzero(plan.pass_E == 0)
            chunks.append(plan.chunk_E[first_E])
            windows.append(epoch * self.windows_per_epoch + first_E // self.window_chunks)
        window_N, chunk_N = np.concatenate(windows), np.concatenate(chunks)
        return window_N[window_N <= last], chunk_N[window_N <= last]

    def _make_epoch_plan(self, epoch: int) -> EpochPlan:
        """Chunks, passes and window borders of an epoch."""
        given = [self._given(source, epoch) for source in range(len(self._chunks))]
        source_E = np.repeat(range(len(given)), [len(chunks) for chunks, _ in given])
        if len(given) > 1:
            source_E = source_E[permutation(len(source_E), self.seed, _PLACES, epoch)]
        chunk_E, pass_E = np.empty((2, len(source_E)), np.int64)
        for source, (chunks, passes) in enumerate(given):
            its_places = source_E == source
            chunk_E[its_places], pass_E[its_places] = chunks, passes
        ends = np.concatenate([[0], np.cumsum(self.chunk_rows_C[chunk_E])])
        borders = np.minimum(np.arange(self.windows_per_epoch + 1) * self.window_chunks, len(chunk_E))
        return EpochPlan(chunk_E, pass_E, self.epoch_start(epoch) + ends[borders])

    def _given(self, source: int, epoch: int) -> tuple[Int64s, Int64s]:
        """Chunks that a source gives in an epoch, and the pass that each belongs to."""
        first, last = self._chunks_given(source, epoch), self._chunks_given(source, epoch + 1)
        count, parts = self._chunks[source], [np.empty(0, np.int64)]
        for number in range(first // count, -(-last // count)):
            start = number * count
            parts.append(self._pass(source, number)[0][max(first - start, 0) : last - start])
        return np.concatenate(parts), np.arange(first, last) // count

    def _chunks_given(self, source: int, epoch: int) -> int:
        """Chunks that a source has given before an epoch."""
        return floor(epoch * self._quota[source])

    def _rows_given(self, source: int, chunks: int) -> int:
        """Rows in the first chunks that a source gives."""
        passes, rest = divmod(chunks, self._chunks[source])
        return passes * self._source_rows[source] + (int(self._pass(source, passes)[1][rest - 1]) if rest else 0)

    def _make_pass(self, source: int, number: int) -> tuple[Int64s, Int64s]:
        """The chunks of a source in the order of one pass, and their rows summed up."""
        chunks = self._first_chunk[source] + permutation(self._chunks[source], self.seed, _CHUNKS, source, number)
        return chunks, np.cumsum(self.chunk_rows_C[chunks])


def permutation(size: int, *key: int) -> Int64s:
    """A permutation of 0..size-1 that depends on `key` alone."""
    number = np.arange(size)
    low_bits = np.uint64((1 << size.bit_length()) - 1)
    # Sorting the number along in the low bits is five times as fast as argsort, and leaves no ties.
    random_above = _keys(*key, number) & ~low_bits
    return (np.sort(random_above | number.view(np.uint64)) & low_bits).view(np.int64)


def sample_keys(seed: int, pass_N: Int64s | int, sample_id_N: Int64s) -> Int64s:
    """Key of all randomness of a sample in one pass over its source, int64: splitmix64 of (seed, pass, sample id)."""
    return _keys(seed, pass_N, sample_id_N).view(np.int64)


def _keys(*numbers: Int64s | int) -> NDArray[np.uint64]:
    """Each number in turn is added to the state and mixed in."""
    state = np.zeros(1, np.uint64)
    for number in numbers:
        added = np.atleast_1d(number % 2**64 if isinstance(number, int) else number).astype(np.uint64)
        state = mixed(state + added)
    return state


def _check(chunks: Sequence[int], shares: Sequence[float]) -> None:
    for source, (count, share) in enumerate(zip(chunks, shares, strict=True)):
        if count == 0:
            raise ValueError(f"source {source} has no chunks; leave it out or check its index")
        if share <= 0 or (source == 0 and share != 1):
            raise ValueError(f"share of source {source} ({share}) must be positive, and 1 for the first")


GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1, _MIX_2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


def mixed(state: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One step of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), element by element."""
    state = state + GOLDEN
    state = (state ^ (state >> np.uint64(30))) * _MIX_1
    state = (state ^ (state >> np.uint64(27))) * _MIX_2
    return state ^ (state >> np.uint64(31))
