"""Captions that the data do not hold, for the time of a run: from the store, or made beside training by a thread."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import pyarrow as pa

    from tips_ray.captioning.stream import CaptionInputs
    from tips_ray.config import CaptionerConfig, RunConfig
    from tips_ray.data.captions.store import CaptionStore
    from tips_ray.data.index import Index
    from tips_ray.data.stream import CaptionAccess

END_SECONDS = 10
"""Longest that a run waits at its end for what an actor has under way; the next run would make it again."""
TOLD_SHARE = 0.1
"""Of the time in which captions were made: a shorter wait of training is not worth a line."""


def caption_store(config: "RunConfig") -> tuple["CaptionStore", "CaptionerConfig"]:
    """The captioner's part of the store, and the captioner with its model where any process of this machine finds it.

    Raises:
        ValueError: there is no captioner in the config, or no such model.
    """
    from tips_ray.captioning.model_folder import fingerprint, model_folder
    from tips_ray.config import CaptionerConfig
    from tips_ray.data.captions.store import CaptionStore

    captioner = config.captions.captioner
    if captioner is None:
        raise ValueError("captions.captioner is not set: name a PaliGemma in captions.captioner.model")
    folder = model_folder(captioner)
    store = CaptionStore(_store_uri(config), fingerprint(captioner, folder))
    if Path(captioner.model).is_dir():  # relative to where the user stands, which a Ray worker does not know
        captioner = CaptionerConfig.model_validate({**captioner.model_dump(), "model": str(folder.resolve())})
    return store, captioner


def store_of(config: "RunConfig") -> "CaptionStore":
    """Where a run finds captions that were made or taken in before.

    Raises:
        ValueError: as `caption_store`; or nothing was taken in by that name.
    """
    from tips_ray.data.captions.store import imported_store

    name = config.captions.imported
    if name is None:
        return caption_store(config)[0]
    store = imported_store(_store_uri(config), name)
    if not store.description():
        raise ValueError(
            f"captions.imported ({name}): {store.folder} is empty; first run tips-ray captions import --captioner "
            f"{name}"
        )
    return store


def _store_uri(config: "RunConfig") -> str:
    from tips_ray import storage

    return config.captions.store or storage.join(config.storage, "captions")


@contextmanager
def captions_of(config: "RunConfig", index: "Index", index_uri: str) -> Iterator["CaptionAccess | None"]:
    """What the training stream needs for `captions.source`; with `live`, captioning goes on until the block ends."""
    from tips_ray.data.stream import CaptionAccess

    if config.captions.source == "column":
        yield None
        return
    if config.captions.source == "store":
        yield CaptionAccess(store_of(config))
        return
    store, captioner = caption_store(config)
    import ray
    from ray.exceptions import RayError

    from tips_ray.captioning.stream import CaptionInputs, due_chunks, new_pace
    from tips_ray.launch import cluster as ray_cluster

    ray_cluster.connect(ray_cluster.cpus_needed(config))
    pace: Any = new_pace(config.captions.lead_windows)
    access = CaptionAccess(store, pace)
    due = due_chunks(index, config, store, config.schedule.total_steps * config.global_batch_images)
    if due.num_rows:
        print(f"captions   {due.num_rows:,} chunks to make; training begins with the first of them", flush=True)
    inputs = CaptionInputs(config, captioner, index_uri, access)
    thread = threading.Thread(target=_beside, args=(inputs, due), name="captioning", daemon=True)
    thread.start()
    try:
        yield access
    finally:
        with suppress(RayError):  # how training ended matters more
            ray.get(pace.end.remote())
        thread.join(END_SECONDS)


@dataclass
class Made:
    """What captioning has done so far."""

    chunks: int = 0
    images: int = 0
    bad_images: int = 0
    busy_seconds: float = 0.0
    """Of all captioner actors together."""

    def add(self, batch: dict[str, Any]) -> None:
        self.chunks += len(batch["chunk"])
        self.images += int(batch["images"].sum())
        self.bad_images += int(batch["bad_images"].sum())
        self.busy_seconds += float(batch["seconds"].sum())


def caption_all(inputs: "CaptionInputs", due: "pa.Table") -> Made:
    """Make the captions of `due`, with a line now and then."""
    from tips_ray.captioning.model_folder import description, model_folder
    from tips_ray.captioning.stream import caption_stream
    from tips_ray.launch.cluster import quiet_data
    from tips_ray.launch.progress import tenths

    made, started = Made(), time.monotonic()
    if not due.num_rows:
        return made
    inputs.access.store.describe(description(inputs.captioner, model_folder(inputs.captioner)))
    stream, is_due = caption_stream(inputs, due), tenths(due.num_rows, told=-1)
    quiet_data()
    for batch in stream.iter_batches(batch_size=None, batch_format="numpy"):
        made.add(cast("dict[str, Any]", batch))
        if is_due(made.chunks):
            rate = made.images / (time.monotonic() - started)
            print(
                f"captions   {made.images:,} images, {made.chunks} of {due.num_rows} chunks, {rate:.0f}/s", flush=True
            )
    if made.bad_images:
        print(f"captions   {made.bad_images:,} images have none; the store has the reasons", flush=True)
    return made


def _beside(inputs: "CaptionInputs", due: "pa.Table") -> None:
    """The thread: what goes wrong is told to the stream that waits for captions."""
    import ray

    pace: Any = inputs.access.pace
    started = time.monotonic()
    try:
        made = caption_all(inputs, due)
        ray.get(pace.finish.remote())
        _tell_balance(made, time.monotonic() - started, ray.get(pace.waits.remote()), inputs.config)
    except Exception as error:  # whatever it is, training must not wait for captions that never come
        if ray.is_initialized():  # after Ctrl-C it may be gone, and a call would join another cluster of this machine
            ray.get(pace.end.remote(why_stopped(error)))


def why_stopped(error: Exception) -> str:
    """A sentence."""
    from tips_ray.errors import last_words

    return f"captioning stopped: {last_words(error)}"


def _tell_balance(made: Made, seconds: float, waits: tuple[float, float], config: "RunConfig") -> None:
    """Actors that would have kept up with training, where it waited and captioning did not."""
    from tips_ray.captioning.stream import READERS

    waited_seconds, held_seconds = waits[0], waits[1] / READERS
    if waited_seconds < TOLD_SHARE * seconds or held_seconds > TOLD_SHARE * seconds or not made.busy_seconds:
        return
    per_actor = made.images / made.busy_seconds
    wanted = made.images / max(seconds - waited_seconds, seconds / 10)
    print(
        f"captions   training waited {waited_seconds:.0f} of {seconds:.0f} s for them: an actor writes {per_actor:.0f} "
        f"images/s, about {ceil(wanted / per_actor)} would keep up (resources.captioners is "
        f"{config.resources.captioners})",
        flush=True,
    )
