"""A run with a tiny captioner, and functions that observe its captioning from outside."""

import time
from collections.abc import Callable
from pathlib import Path

import ray._private.state
from toy_run import tiny_run, write_scenes

from tips_ray.captioning.stream import CaptionInputs
from tips_ray.config import RunConfig
from tips_ray.data.captions.store import CaptionStore
from tips_ray.data.index import Index
from tips_ray.data.index_folder import index_of
from tips_ray.data.stream import CaptionAccess
from tips_ray.launch.captions import caption_store

ROWS = 40
"""Ten chunks of four, in windows of three chunks."""


def captioned_run(root: Path, model: Path, rows: int = ROWS, **values) -> RunConfig:
    """A tiny run with a captioner; row 6 is no image."""
    data = root / "data"
    if not data.exists():
        write_scenes(data, rows, {6: {"image": b"no image"}})
    captioner = {"model": str(model), "dtype": "fp32", "max_new_tokens": 12, "batch_images": 4}
    captions = {"source": "live", "captioner": captioner, "lead_windows": 1}
    return tiny_run(root, str(data), **{"captions": captions, "data__max_bad_fraction": 0.5, **values})


def caption_inputs(config: RunConfig) -> tuple[Index, CaptionInputs]:
    folder = f"{config.storage}/index"
    index = index_of(config.data, folder)
    store, captioner = caption_store(config)
    return index, CaptionInputs(config, captioner, index.uri, CaptionAccess(store))


def pids(actor: str) -> set[int]:
    """Process ids of the living actors of a class."""
    actors = ray._private.state.actors().values()
    return {found["Pid"] for found in actors if found["State"] == "ALIVE" and actor in found["ActorClassName"]}


def until(is_so: Callable[[], object], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


def objects(store: CaptionStore) -> dict[Path, int]:
    """Chunks of a local store and when each was written."""
    return {path: path.stat().st_mtime_ns for path in Path(store.folder).rglob("*.parquet")}
