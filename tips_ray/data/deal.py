"""Which worker gets which rows of the rest of a run: micro-batches are dealt in turn. Without Ray and I/O."""

from typing import NamedTuple


class Deal(NamedTuple):
    """Micro-batch k holds positions [start + k * rows, start + (k + 1) * rows) and belongs to worker k mod workers."""

    start: int
    """Position of the first row."""
    stop: int
    """Position after the last row; a whole number of micro-batches after `start`."""
    rows: int
    """Of a micro-batch."""
    workers: int

    def micro_batches(self, rank: int, first: int, last: int) -> range:
        """Numbers of a worker's micro-batches that have rows at positions [first, last)."""
        first, last = max(first, self.start), min(last, self.stop)
        if first >= last:
            return range(0)
        lowest, end = (first - self.start) // self.rows, -((self.start - last) // self.rows)
        return range(lowest + (rank - lowest) % self.workers, end, self.workers)

    def receivers(self, first: int, last: int) -> set[int]:
        """Ranks of the workers that have rows at positions [first, last)."""
        return {rank for rank in range(self.workers) if self.micro_batches(rank, first, last)}

    def positions(self, micro_batch: int) -> tuple[int, int]:
        """The first position of a micro-batch, and the one after its last."""
        first = self.start + micro_batch * self.rows
        return first, first + self.rows
