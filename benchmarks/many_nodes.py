"""Measures a shared stream of many workers: bytes that are read, processor time of what exists once a run, first batch.

    python -m benchmarks.many_nodes [--workers 1 4 16 64] [--micro-batches 1500] [--windows 2000000]

Workers are simulated: one process receives the rows of all workers' micro-batches, in turn, and makes no views.
Readers, the readers' calls and the references are those of a run. The time of a process that exists once a run (Ray's
GCS, and this process, which splits the stream) is the rise from a short stream to a long one, per micro-batch, without
what they take in the same time when nothing is streamed.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import ray

from benchmarks.processes import named_seconds
from benchmarks.stream import start_seconds, tokenizer_in
from tests.toy_run import tiny_run, write_scenes
from tips_ray.data.index_folder import index_of
from tips_ray.data.shared_stream import SharedStream, WorkerStream

PASS, IDLE_SECONDS = 8, 20
KEYS = {"data__chunk_rows": 16, "data__window_chunks": 16, "micro_batch_images": PASS, "resources__stream": "shared"}
ONCE = ("gcs_server", "benchmarks.many_nodes")
"""Words in the command lines of the processes that exist once a run."""


class Found(NamedTuple):
    """Figures of one stream."""

    micro_batches: int
    read: int
    used: int
    seconds: float
    once: float
    """Processor seconds of what exists once a run."""
    readers: float
    """Processor seconds of all readers."""


def main() -> None:
    """Print a line for each number of workers, and the time to the first batch."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 4, 16, 64])
    for name, default in (("micro-batches", 1500), ("windows", 2_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = write_scenes(root / "scenes", 512)
        idle = _idle()
        print(f"idle: {1e3 * idle:.1f} CPU ms a second where one process serves all", flush=True)
        for workers in options.workers:
            _measure(root, source, workers, options.micro_batches, idle)
        if options.windows:
            start_seconds(root, options.windows, "shared")


def _idle() -> float:
    """Processor seconds a second of what exists once a run."""
    before = named_seconds(os.getpid(), *ONCE)
    time.sleep(IDLE_SECONDS)
    return (named_seconds(os.getpid(), *ONCE) - before) / IDLE_SECONDS


def _measure(root: Path, source: str, workers: int, micro_batches: int, idle: float) -> None:
    steps = -(-micro_batches // workers)
    keys = {"global_batch_images": workers * PASS, "resources__workers": workers, "schedule__total_steps": 5 * steps}
    config = tiny_run(root, source, **KEYS, **keys)
    index = index_of(config.data, str(root / "index"))
    streams = (SharedStream(config, index.uri, tokenizer_in(root), None, start) for start in (4 * steps, 0))
    short, long = (_received(stream, workers) for stream in streams)
    more = long.micro_batches - short.micro_batches
    once, readers = (1e3 * (late - early) / more for early, late in zip(short[4:], long[4:], strict=True))
    once -= 1e3 * idle * (long.seconds - short.seconds) / more
    print(
        f"W = {workers:2d}, R = {config.resources.stream_readers}: {long.read / long.used:.3f} bytes read a byte used; "
        f"CPU ms a micro-batch: {once:.3f} where one process serves all, {readers:.2f} in readers; "
        f"{long.micro_batches / long.seconds:,.0f} micro-batches a second",
        flush=True,
    )


def _received(stream: SharedStream, workers: int) -> Found:
    """Split a stream and receive the rows of all workers."""
    actor: Any = ray.remote(num_cpus=0)(_Receiver)
    once = named_seconds(os.getpid(), *ONCE)
    started = time.perf_counter()
    splits = stream.split(workers)
    receiver = actor.remote(splits)
    count, used = ray.get(receiver.take.remote())
    seconds = time.perf_counter() - started
    readers = splits[0].readers
    read = sum(ray.get([reader.bytes_read.remote() for reader in readers]))
    of_readers = named_seconds(os.getpid(), "ray::WindowReader")
    for one in (receiver, *readers):
        ray.kill(one)
    return Found(count, read, used, seconds, named_seconds(os.getpid(), *ONCE) - once, of_readers)


class _Receiver:
    """All workers, one micro-batch of each in turn."""

    def __init__(self, splits: list[WorkerStream]) -> None:
        self._streams = [split.micro_batches(split.stream.bounds(split.workers, 2).windows) for split in splits]

    def take(self) -> tuple[int, int]:
        """Micro-batches, and bytes of their images."""
        count = used = 0
        for parts in (parts for taken in zip(*self._streams, strict=True) for parts in taken):
            count += 1
            used += sum(len(row["image"]) for part in ray.get(parts) for row in part)
        return count, used


if __name__ == "__main__":
    main()
