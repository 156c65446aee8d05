"""Ray Data: make the captions that a run will need, in training order, each chunk once.

The stream is one of its own beside training: it outlives restarts of the workers, stays at most `captions.lead_windows`
ahead of what training reads, and ends, with its actors, when every image has its captions.
"""

import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset, ExecutionResources, TaskPoolStrategy
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tips_ray.captioning.model_folder import fingerprint, model_folder
from tips_ray.config import CaptionerConfig, RunConfig
from tips_ray.data.captions.coordinator import CaptionCoordinator
from tips_ray.data.captions.join import missing_chunks, place_of
from tips_ray.data.captions.store import CaptionStore, ChunkCaptions, image_sha256
from tips_ray.data.decode import BadImage, decode
from tips_ray.data.index import Index, run_order
from tips_ray.data.index_folder import opened_index
from tips_ray.data.stream import CaptionAccess
from tips_ray.ray_data_adapter import handed_out, in_order

CHUNKS_PER_TASK = 2
"""Chunks that are read, and captioned, together: rows that end early leave room for those of the next chunk."""
READERS = 2
"""Read tasks at a time."""
READ_CPUS = 1
"""CPUs of all read tasks together."""
DECODERS = 4
"""Threads of an actor that decode images."""
_READ = pa.schema([("chunk", pa.int64()), ("images", pa.list_(pa.binary())), ("errors", pa.list_(pa.string()))])
_MADE = pa.schema(
    [("chunk", pa.int64()), ("images", pa.int64()), ("bad_images", pa.int64()), ("seconds", pa.float64())]
)


def new_caption_coordinator(lead_windows: int) -> ActorHandle:
    """A `CaptionCoordinator` as an actor on the driver's node: without that node there is no run either."""
    actor: Any = ray.remote(num_cpus=0)(CaptionCoordinator)
    place = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return actor.options(scheduling_strategy=place).remote(lead_windows)


@dataclass(frozen=True)
class CaptionInputs:
    """What every task of the stream needs."""

    config: RunConfig
    captioner: CaptionerConfig
    index_uri: str
    access: CaptionAccess


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
    stream = (
        handed_out(due, CHUNKS_PER_TASK)
        .map_batches(
            read,
            batch_size=CHUNKS_PER_TASK,
            batch_format="numpy",
            compute=TaskPoolStrategy(READERS),
            num_cpus=READ_CPUS / READERS,
        )
        .map_batches(
            CaptionActor,
            fn_constructor_kwargs={"inputs": inputs, "is_over": partial(_is_over, inputs.access.coordinator)},
            batch_size=CHUNKS_PER_TASK,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=resources.captioners),
            num_cpus=resources.cpus_per_captioner,
            num_gpus=resources.gpus_per_captioner,
            resources=resources.role("caption"),
        )
    )
    return in_order(stream, _limits(inputs))


def _limits(inputs: CaptionInputs) -> ExecutionResources | None:
    """Resources that this stream may use beside training, which Ray Data does not see."""
    if not inputs.access.coordinator:
        return None
    resources = inputs.config.resources
    cpus, gpus = resources.cpus_per_captioner, resources.gpus_per_captioner
    return ExecutionResources.for_limits(
        cpu=resources.captioners * cpus + READ_CPUS, gpu=resources.captioners * gpus or None
    )


def _read(batch: dict[str, np.ndarray], inputs: CaptionInputs) -> Iterator[pa.Table]:
    """Encoded images of the chunks, once the first of them is due: training may wait for that one alone."""
    index = opened_index(inputs.index_uri)
    if inputs.access.coordinator and not _is_due(int(batch["window"].min()), inputs.access.coordinator):
        return
    for chunk in batch["chunk"].tolist():
        rows = index.read(chunk)
        columns = [[chunk], [[row["image"] for row in rows]], [[row["error"] for row in rows]]]
        yield pa.table(columns, schema=_READ)


def _is_over(coordinator: ActorHandle | None) -> bool:
    """Captioning beside training is over; False where captions are made without training."""
    return coordinator is not None and bool(ray.get(coordinator.is_over.remote()))


def _is_due(window: int, coordinator: ActorHandle) -> bool:
    """True once training is near enough, False when it is over."""
    started = time.monotonic()
    is_due = bool(ray.get(coordinator.admit.remote(window)))
    coordinator.add_held.remote(time.monotonic() - started)
    return is_due


def placed_captioner(config: CaptionerConfig, gpus: float) -> CaptionerConfig:
    """The captioner for an actor with so many GPUs: without any, `auto` is the CPU.

    Ray hides the GPUs of a node from a process that holds none only if told to, and the first is a trainer's.
    """
    return config if gpus or config.device != "auto" else config.model_copy(update={"device": "cpu"})


class CaptionActor:
    """A captioner that fills the store; all that it does can be repeated without harm."""

    def __init__(self, inputs: CaptionInputs, is_over: Callable[[], bool]) -> None:
        """`is_over`: no more captions are needed; work that still waits for this actor is skipped.

        Raises:
            ValueError: the model on this machine is another than that of the store.
        """
        import torch  # readers and planners of this module do not need it

        from tips_ray.captioning.captioner import Captioner

        _require_its_store(inputs)
        torch.set_num_threads(max(int(inputs.config.resources.cpus_per_captioner), 1))
        config = placed_captioner(inputs.captioner, inputs.config.resources.gpus_per_captioner)
        self.captioner, self.inputs, self.is_over = Captioner(config), inputs, is_over
        self.index = opened_index(inputs.index_uri)

    def __call__(self, table: pa.Table) -> pa.Table:
        started, rows = time.perf_counter(), [] if self.is_over() else table.to_pylist()
        hashes = [image_sha256(row["images"]) for row in rows]
        captioned = iter(self._captions([image for row in rows for image in row["images"]], sum(hashes, [])))
        bad = []
        for row, sha256 in zip(rows, hashes, strict=True):
            found = [next(captioned) for _ in sha256]
            errors = [own or error for own, (_, error) in zip(row["errors"], found, strict=True)]
            shard, number = place_of(self.index, row["chunk"])
            texts = [captions for captions, _ in found]
            self.inputs.access.store.write(
                shard, number, ChunkCaptions(self.index.chunk(row["chunk"]).row, sha256, texts, errors)
            )
            if self.inputs.access.coordinator:
                self.inputs.access.coordinator.add_made.remote(1)
            bad.append(sum(map(bool, errors)))
        seconds = (time.perf_counter() - started) / max(len(rows), 1)
        columns = [[row["chunk"] for row in rows], [len(row["images"]) for row in rows], bad, [seconds] * len(rows)]
        return pa.table(columns, schema=_MADE)

    def _captions(self, images: list[bytes], hashes: list[bytes]) -> list[tuple[list[str], str]]:
        """Captions or an error of each image, in order.

        A drawn caption depends on the image's bytes alone, not on where it is kept.
        """
        with ThreadPoolExecutor(DECODERS) as pool:
            decoded = list(pool.map(self._decoded, images))
        good = [(pixels, sha) for pixels, sha in zip(decoded, hashes, strict=True) if isinstance(pixels, np.ndarray)]
        keys = [int.from_bytes(sha[:8], signed=True) for _, sha in good]
        made = iter(self.captioner([pixels for pixels, _ in good], keys))
        return [next(made) if isinstance(pixels, np.ndarray) else ([], pixels) for pixels in decoded]

    def _decoded(self, image: bytes) -> np.ndarray | str:
        """Pixels, or why there are none."""
        data = self.inputs.config.data
        try:
            return decode(image, data.max_image_bytes, data.max_image_pixels)
        except BadImage as error:
            return str(error)


def _require_its_store(inputs: CaptionInputs) -> None:
    """Check the model on this machine: a folder of this name may hold other files, and a store has one captioner."""
    found, wanted = fingerprint(inputs.captioner, model_folder(inputs.captioner)), inputs.access.store.fingerprint
    if not found.startswith(wanted):
        raise ValueError(
            f"captions.captioner.model ({inputs.captioner.model}) on {socket.gethostname()} differs from that of the "
            f"program that started captioning: its captions would be kept as {found[: len(wanted)]}, not {wanted}; put "
            "the same files on every machine, or give an s3:// prefix"
        )
