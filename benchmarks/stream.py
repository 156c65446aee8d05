"""Compares the training stream through Ray with its bare stages, in processor time per image; times a long run's start.

    python -m benchmarks.stream [--source DATA] [--images 12800] [--workers 2] [--rounds 3] [--windows 2000000]
                                [--stream split shared]

Both sides read the same rows in the same order and make the same views (224 px, ten local crops of 98 px, masks, token
ids), on one thread each. The stream's processor time is that of all Ray processes, also of the batches' consumers. The
time per image is the rise from a stream of a quarter of the steps to the whole one; start-up is reported separately.
Rounds alternate; the median of each side counts. The bare side calls the stream's stage functions one after the other,
without Arrow tables between them. The parts of a stream are by the names of its processes.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.processes import CpuMeter, resident_bytes
from tests.toy_run import ToyStream, tiny_run, write_scenes
from tips_ray import storage
from tips_ray.data.index import ChunkTable, Index, build_index, run_order
from tips_ray.data.index_folder import index_of, opened_index, write_index
from tips_ray.data.pipeline import training_stream
from tips_ray.data.shared_stream import SharedStream
from tips_ray.data.stream import ordered_rows, read_chunks, views
from tips_ray.ray_data_adapter import InOrder
from tips_ray.tokenizer import train_tokenizer

BATCH, PASS, SHORT_PART = 128, 64, 4
VIEWS = {"global_px": 224, "local_px": 98, "local_crops": 10}
KEYS = {"views": VIEWS, "image.image_size_px": 224, "data.chunk_rows": 64, "data.window_chunks": 4}
PARTS = ("_Consumer", "WindowReader", "SplitCoordinator", "ray::views", "raylet/raylet", "gcs_server")
"""Words in the command lines of the processes that are told apart."""
KEYS |= {"global_batch_images": BATCH, "micro_batch_images": PASS, "captions.missing": "other"}


def main() -> None:
    """Print figures and ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", help="data of any format; default: rendered scenes")
    for name, default in (("images", 12_800), ("workers", 2), ("rounds", 3), ("windows", 2_000_000)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--stream", nargs="+", choices=("split", "shared"), default=["split", "shared"])
    options = parser.parse_args()
    torch.set_num_threads(1)
    longest: Any = {"idle_worker_killing_time_threshold_ms": 3_600_000}  # keeps processes alive between streams
    ray.init(
        "local",
        num_cpus=4,
        object_store_memory=1 << 30,
        include_dashboard=False,
        log_to_driver=False,
        _system_config=longest,
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = options.source or write_scenes(root / "scenes", 400)
        inputs = _inputs(root, storage.resolved(source), options.images // BATCH)
        for kind in options.stream:
            _cpu(inputs, kind, options.workers, options.rounds)
        for kind in options.stream if options.windows else ():
            start_seconds(root, options.windows, kind)


def _inputs(root: Path, source: str, steps: int) -> ToyStream:
    keys = {key.replace(".", "__"): value for key, value in KEYS.items()}
    config = tiny_run(root, source, schedule__total_steps=steps, **keys)
    index = index_of(config.data, str(root / "index"))
    return ToyStream(config, index.uri, tokenizer_in(root))


def tokenizer_in(root: Path) -> str:
    """URI of a small tokenizer."""
    path = root / "tokenizer.json"
    path.write_bytes(train_tokenizer(["a red sphere on the grey ground"], 60).source)
    return str(path)


def _cpu(inputs: ToyStream, kind: str, workers: int, rounds: int) -> None:
    """Measure processor time per image: the rise from a short stream to the whole one, with start-up separate."""
    actor: Any = ray.remote(num_cpus=0)(_Consumer)
    consumers = [actor.remote() for _ in range(workers)]
    steps = inputs.config.schedule.total_steps
    short = steps // SHORT_PART
    _consumed(inputs, kind, steps - short, consumers)
    found = []
    for _ in range(rounds):
        part, whole = (_consumed(inputs, kind, first, consumers) for first in (steps - short, 0))
        rise = {name: (whole[name] - part[name]) / (steps - short) / BATCH for name in whole}
        each = sum(rise.values())
        found.append((_bare(inputs) / steps / BATCH, each, sum(whole.values()) - each * steps * BATCH, *rise.values()))
    bare, stream, fixed, *parts = map(median, zip(*found, strict=True))
    print(f"{kind}: bare stages  {1e3 * bare:.2f} CPU ms/image, one process")
    print(f"{kind}: stream       {1e3 * stream:.2f} CPU ms/image into {workers} workers, {fixed:.1f} CPU s to start it")
    told = ", ".join(f"{name} {1e3 * part:.3f}" for name, part in zip((*PARTS, "rest"), parts, strict=True))
    print(f"{kind}: ratio        {stream / bare:.2f}; CPU ms/image: {told}", flush=True)


def _bare(inputs: ToyStream) -> float:
    """Processor seconds of the bare stages in this process."""
    config, stop = inputs.config, inputs.config.schedule.total_steps * BATCH
    index = opened_index(inputs.index_uri)
    order = run_order(index, config.data, config.seed, BATCH)
    started = time.process_time()
    for window in order.windows(0, stop):
        rows = order.window_rows(window).between(0, stop)
        found = ordered_rows(rows, read_chunks(index, rows))
        for first in range(0, len(found), PASS):
            views(found[first : first + PASS], config, inputs.tokenizer_uri)
    return time.process_time() - started


class _Consumer:
    """A training worker that only takes its batches."""

    def take(self, split: Any) -> int:
        batches = split.iter_batches(batch_size=PASS, batch_format="numpy", prefetch_batches=2)
        return sum(len(batch["position"]) for batch in batches)

    def first(self, split: Any, rows: int) -> None:
        next(iter(split.iter_batches(batch_size=rows, batch_format="numpy")))


def _consumed(inputs: ToyStream, kind: str, start_step: int, consumers: list[Any]) -> dict[str, float]:
    """Processor seconds of a stream until all workers have taken their shares, by the names in PARTS."""
    with CpuMeter(os.getpid(), *PARTS) as meter:
        stream = _opened(kind, *inputs, start_step)
        splits = InOrder().configure({"train": stream}, len(consumers), None, None)
        taken = ray.get([one.take.remote(split["train"]) for one, split in zip(consumers, splits, strict=True)])
    assert sum(taken) == (inputs.config.schedule.total_steps - start_step) * BATCH
    return meter.seconds_of


def _opened(kind: str, *inputs: Any) -> Any:
    config, *rest = inputs
    resources = config.resources.model_copy(update={"stream": kind})
    return (SharedStream if kind == "shared" else training_stream)(
        config.model_copy(update={"resources": resources}), *rest
    )


def start_seconds(root: Path, windows: int, kind: str) -> None:
    """Measure time to the first batch of a run over very many windows of one chunk, and its planner's memory."""
    folder = root / f"start-{kind}"
    source = write_scenes(folder / "one", 8)
    keys = {"data__chunk_rows": 8, "data__window_chunks": 1, "schedule__total_steps": windows}
    config = tiny_run(folder, source, **keys, resources__workers=1)
    index = _repeated(build_index(config.data), windows)
    write_index(index, uri := str(folder / "many"))
    consumer: Any = ray.remote(num_cpus=0)(_Consumer).remote()
    ray.get(consumer.__ray_ready__.remote())
    started = time.perf_counter()
    stream = _opened(kind, config, uri, tokenizer_in(root), None, 0)
    split = InOrder().configure({"train": stream}, 1, None, None)[0]["train"]
    ray.get(consumer.first.remote(split, 8))
    seconds = time.perf_counter() - started
    held = {name: resident_bytes(os.getpid(), name) / 1e9 for name in ("SplitCoordinator", "WindowReader", "_Consumer")}
    told = ", ".join(f"{name} {size:.2f}" for name, size in held.items() if size)
    print(f"{kind}: {windows:,} windows: first batch after {seconds:.1f} s; GB of memory: {told}", flush=True)


def _repeated(index: Index, chunks: int) -> Index:
    """An index that repeats the one chunk of `index`."""
    columns = {name: np.repeat(column, chunks) for name, column in index.chunks._asdict().items()}
    columns["first_sample"] = np.arange(chunks) * 8
    return Index(index.fingerprint, 8, index.sources, index.shards, ChunkTable(**columns), index.rejects)


if __name__ == "__main__":
    main()
