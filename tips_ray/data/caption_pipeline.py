"""Ray Data: the captions that a run will need, made in training order, each chunk once.

The stream is one of its own beside training: it outlives restarts of the workers, stays at most `captions.lead_windows`
ahead of what training reads, and ends, with its actors, when every image has its captions.
"""

import asyncio
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
import torch
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, ExecutionResources, TaskPoolStrategy

from tips_ray.captioning.captioner import Captioned, Captioner
from tips_ray.captioning.chunks import ChunkCaptions, image_sha256
from tips_ray.captioning.store import CaptionStore
from tips_ray.config import CaptionerConfig, RunConfig
from tips_ray.data.captions import missing_chunks, place_of
from tips_ray.data.decode import BadImage, decode
from tips_ray.data.index import Index, opened_index, run_order
from tips_ray.data.stream import CaptionAccess

CHUNKS_PER_TASK = 2
"""Chunks that are read, and captioned, together: rows that end early leave room for those of the next chunk."""
SOURCE_BLOCKS = 20
READERS = 2
"""Read tasks at a time."""
READ_CPUS = 1
"""Of all of them."""
DECODERS = 4
_READ = pa.schema([("chunk", pa.int64()), ("images", pa.list_(pa.binary())), ("errors", pa.list_(pa.string()))])


@dataclass(frozen=True)
class CaptionInputs:
    """What every task of the stream needs."""

    config: RunConfig
    captioner: CaptionerConfig
    index_uri: str
    access: CaptionAccess


def new_pace(lead_windows: int) -> ActorHandle:
    """An actor that holds captioning back, see `Pace`."""
    actor: Any = ray.remote(num_cpus=0)(Pace)
    return actor.remote(lead_windows)


class Pace:
    """How far training is, and how far captioning and the reading of rows may therefore go."""

    def __init__(self, lead_windows: int) -> None:
        self.lead_windows, self._wanted, self._moved = lead_windows, 0, asyncio.Event()
        self._failure, self._is_over = "", False
        self._waited_seconds, self._held_seconds = 0.0, 0.0

    async def want(self, window: int) -> None:
        """The next steps of training end in this window."""
        self._wanted = max(self._wanted, window)
        self._move()

    async def admit(self, window: int) -> bool:
        """Return once a window is due; False: none is any more."""
        while window > self._wanted + self.lead_windows and not self._is_over:
            await self._moved.wait()
        return not self._is_over

    async def end(self, failure: str = "") -> None:
        """No more captions: the run is over, or (with a reason) captioning failed."""
        self._is_over, self._failure = True, failure
        self._move()

    async def failure(self, wait_seconds: float = 0.0) -> str:
        """Why captions will not come, as soon as that is known; empty after so many seconds without such news."""
        deadline = time.monotonic() + wait_seconds
        while not self._failure and (left := deadline - time.monotonic()) > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moved.wait(), left)
        return self._failure

    async def add_waited(self, seconds: float) -> None:
        """Training waited for rows."""
        self._waited_seconds += seconds

    async def add_held(self, seconds: float) -> None:
        """A task that reads for captioning waited until its window was due."""
        self._held_seconds += seconds

    async def waits(self) -> tuple[float, float]:
        """Seconds that training waited for rows, and that all read tasks of captioning waited for training."""
        return self._waited_seconds, self._held_seconds

    def _move(self) -> None:
        self._moved.set()
        self._moved = asyncio.Event()


def due_chunks(index: Index, config: RunConfig, store: CaptionStore, stop: int | None = None) -> pa.Table:
    """Columns `window`, `chunk`: what positions before `stop` (None: all data) need and the store does not have.

    Rows are in training order.
    """
    order = run_order(index, config.data, config.seed, config.global_batch_images)
    window_N, chunk_N = order.first_uses(stop)
    is_missing_C = np.zeros(len(index.chunks.rows), bool)
    is_missing_C[missing_chunks(index, store)] = True
    due_N = is_missing_C[chunk_N]
    return pa.table({"window": window_N[due_N], "chunk": chunk_N[due_N]})


def caption_stream(inputs: CaptionInputs, due: pa.Table) -> Dataset:
    """A row per chunk once its captions are in the store: `chunk`, `images`, `bad_images`, `seconds` of an actor."""
    resources = inputs.config.resources
    read: Any = partial(_read, inputs=inputs)
    rows = -(-due.num_rows // SOURCE_BLOCKS) or 1
    stream = (
        ray.data.from_arrow([due.slice(first, rows) for first in range(0, due.num_rows, rows)])
        .repartition(target_num_rows_per_block=CHUNKS_PER_TASK)
        .map_batches(
            read,
            batch_size=CHUNKS_PER_TASK,
            batch_format="numpy",
            compute=TaskPoolStrategy(READERS),
            num_cpus=READ_CPUS / READERS,
        )
        .map_batches(
            CaptionActor,
            fn_constructor_kwargs={"inputs": inputs},
            batch_size=CHUNKS_PER_TASK,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=resources.captioners),
            num_cpus=resources.cpus_per_captioner,
            num_gpus=resources.gpus_per_captioner,
            resources=resources.role("caption"),
        )
    )
    stream.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=_limits(inputs))
    stream.context.enable_progress_bars = False
    return stream


def _limits(inputs: CaptionInputs) -> ExecutionResources | None:
    """What this stream may plan with beside training, which it does not see."""
    if not inputs.access.pace:
        return None
    resources = inputs.config.resources
    cpus, gpus = resources.cpus_per_captioner, resources.gpus_per_captioner
    return ExecutionResources.for_limits(
        cpu=resources.captioners * cpus + READ_CPUS, gpu=resources.captioners * gpus or None
    )


def _read(batch: dict[str, np.ndarray], inputs: CaptionInputs) -> Iterator[pa.Table]:
    """Encoded images of the chunks that are due, once they are."""
    index = opened_index(inputs.index_uri)
    if inputs.access.pace and not _is_due(int(batch["window"].max()), inputs.access.pace):
        return
    for chunk in batch["chunk"].tolist():
        rows = index.read(chunk)
        columns = [[chunk], [[row["image"] for row in rows]], [[row["error"] for row in rows]]]
        yield pa.table(columns, schema=_READ)


def _is_due(window: int, pace: ActorHandle) -> bool:
    """True once training is near enough, False when it is over."""
    started = time.monotonic()
    is_due = bool(ray.get(pace.admit.remote(window)))
    pace.add_held.remote(time.monotonic() - started)
    return is_due


class CaptionActor:
    """A captioner that fills the store; whatever it does may be done again without harm."""

    def __init__(self, inputs: CaptionInputs) -> None:
        torch.set_num_threads(max(int(inputs.config.resources.cpus_per_captioner), 1))
        self.captioner, self.inputs = Captioner(inputs.captioner), inputs
        self.index = opened_index(inputs.index_uri)

    def __call__(self, table: pa.Table) -> pa.Table:
        started, rows = time.perf_counter(), table.to_pylist()
        hashes = [image_sha256(row["images"]) for row in rows]
        captioned = iter(self._captions([image for row in rows for image in row["images"]], sum(hashes, [])))
        bad = []
        for row, sha256 in zip(rows, hashes, strict=True):
            found = [next(captioned) for _ in sha256]
            errors = [own or made.error for own, made in zip(row["errors"], found, strict=True)]
            shard, number = place_of(self.index, row["chunk"])
            texts = [made.captions for made in found]
            self.inputs.access.store.write(
                shard, number, ChunkCaptions(self.index.chunk(row["chunk"]).row, sha256, texts, errors)
            )
            bad.append(sum(map(bool, errors)))
        seconds = (time.perf_counter() - started) / len(rows)
        columns = {"chunk": table["chunk"], "images": [len(row["images"]) for row in rows], "bad_images": bad}
        return pa.table({**columns, "seconds": [seconds] * len(rows)})

    def _captions(self, images: list[bytes], hashes: list[bytes]) -> list[Captioned]:
        """In the images' order. A drawn caption depends on the image's bytes alone, not on where it is kept."""
        with ThreadPoolExecutor(DECODERS) as pool:
            decoded = list(pool.map(self._decoded, images))
        good = [(pixels, sha) for pixels, sha in zip(decoded, hashes, strict=True) if isinstance(pixels, np.ndarray)]
        keys = [int.from_bytes(sha[:8], signed=True) for _, sha in good]
        made = iter(self.captioner([pixels for pixels, _ in good], keys))
        return [next(made) if isinstance(pixels, np.ndarray) else Captioned([], pixels) for pixels in decoded]

    def _decoded(self, image: bytes) -> np.ndarray | str:
        """Pixels, or why there are none."""
        data = self.inputs.config.data
        try:
            return decode(image, data.max_image_bytes, data.max_image_pixels)
        except BadImage as error:
            return str(error)
