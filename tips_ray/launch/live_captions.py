"""Captioning beside training, by a thread of the driver with its own actors."""

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from typing import Any, cast

import pyarrow as pa
import ray
from ray.exceptions import RayError

from tips_ray.captioning.model_folder import description, model_folder
from tips_ray.captioning.stream import READERS, CaptionInputs, caption_stream, due_chunks, new_caption_coordinator
from tips_ray.config import RunConfig
from tips_ray.console import tell
from tips_ray.data.index import Index
from tips_ray.data.stream import CaptionAccess
from tips_ray.errors import last_line
from tips_ray.launch import cluster
from tips_ray.launch.captions import caption_store
from tips_ray.launch.noise import quietly_begun
from tips_ray.launch.progress import tenths
from tips_ray.launch.sizes import ready_bytes
from tips_ray.train.monitoring import RunMetrics

END_SECONDS = 10
"""Longest wait at the end of a run for chunks in progress, which the next run would otherwise make again."""
TOLD_SHARE = 0.1
"""Share of the captioning time: shorter waits are not reported."""


@contextmanager
def captions_beside_training(config: RunConfig, index: Index) -> Iterator[CaptionAccess]:
    """Caption ahead of training, in training order, until the block ends."""
    store, captioner = caption_store(config)
    cluster.connect(cluster.cpus_needed(config), ready_bytes(config))
    coordinator: Any = new_caption_coordinator(config.captions.lead_windows)
    access = CaptionAccess(store, coordinator)
    due = due_chunks(index, config, store, config.schedule.total_steps * config.global_batch_images)
    if due.num_rows:
        tell("captions", f"captions   {due.num_rows:,} chunks to make; training begins with the first of them")
    inputs = CaptionInputs(config, captioner, index.uri, access)
    thread = threading.Thread(target=_beside, args=(inputs, due), name="captioning", daemon=True)
    thread.start()
    try:
        yield access
    finally:
        with suppress(RayError):  # how training ended matters more
            ray.get(coordinator.end.remote())
        thread.join(END_SECONDS)


@dataclass
class Made:
    """Counts of captioning so far."""

    chunks: int = 0
    images: int = 0
    bad_images: int = 0
    busy_seconds: float = 0.0
    """Seconds of all captioner actors together."""

    def add(self, batch: dict[str, Any]) -> None:
        self.chunks += len(batch["chunk"])
        self.images += int(batch["images"].sum())
        self.bad_images += int(batch["bad_images"].sum())
        self.busy_seconds += float(batch["seconds"].sum())


def caption_all(inputs: CaptionInputs, due: pa.Table) -> Made:
    """Make the captions of `due`, and print progress lines."""
    made, started = Made(), time.monotonic()
    if not due.num_rows:
        return made
    inputs.access.store.describe(description(inputs.captioner, model_folder(inputs.captioner)))
    shown = RunMetrics(inputs.config.name)
    stream, is_due = caption_stream(inputs, due), tenths(due.num_rows, told=-1)
    cluster.quiet_data()
    for batch in quietly_begun(stream.iter_batches(batch_size=None, batch_format="numpy")):
        columns = cast("dict[str, Any]", batch)
        made.add(columns)
        _show(shown, columns)
        if inputs.access.coordinator:  # the stream is in the order of `due`
            inputs.access.coordinator.reached.remote(due["window"][made.chunks - 1].as_py())
        if is_due(made.chunks):
            rate = made.images / (time.monotonic() - started)
            text = f"captions   {made.images:,} images, {made.chunks} of {due.num_rows} chunks, {rate:.0f}/s"
            tell("captions", text, images=made.images, chunks=made.chunks, of_chunks=due.num_rows)
    if made.bad_images:
        tell("captions", f"captions   {made.bad_images:,} images have none; the store has the reasons")
    return made


def _show(shown: RunMetrics, columns: Mapping[str, Any]) -> None:
    """Show Prometheus what was captioned."""
    bad = int(columns["bad_images"].sum())
    shown.add("tips_ray_captioned_images_total", int(columns["images"].sum()) - bad)
    shown.add("tips_ray_uncaptioned_images_total", bad)


def _beside(inputs: CaptionInputs, due: pa.Table) -> None:
    """Body of the thread; an error is reported to the stream that waits for captions."""
    coordinator: Any = inputs.access.coordinator
    started = time.monotonic()
    try:
        made = caption_all(inputs, due)
        ray.get(coordinator.finish.remote())
        _tell_balance(made, time.monotonic() - started, ray.get(coordinator.waits.remote()), inputs.config)
    except Exception as error:  # whatever it is, training must not wait for captions that never come
        if ray.is_initialized():  # after Ctrl-C Ray may be shut down, and a call would join another cluster here
            ray.get(coordinator.end.remote(why_stopped(error)))


def why_stopped(error: Exception) -> str:
    """A sentence about an error of captioning."""
    return f"captioning stopped: {last_line(error)}"


def _tell_balance(made: Made, seconds: float, waits: tuple[float, float], config: RunConfig) -> None:
    """Print how many captioners would keep up with training, if training waited and captioning did not."""
    waited_seconds, held_seconds = waits[0], waits[1] / READERS
    if waited_seconds < TOLD_SHARE * seconds or held_seconds > TOLD_SHARE * seconds or not made.busy_seconds:
        return
    per_actor = made.images / made.busy_seconds
    wanted = made.images / max(seconds - waited_seconds, seconds / 10)
    tell(
        "captions",
        f"captions   training waited {waited_seconds:.0f} of {seconds:.0f} s for them: an actor writes {per_actor:.0f} "
        f"images/s, about {ceil(wanted / per_actor)} would keep up (resources.captioners is "
        f"{config.resources.captioners})",
    )
