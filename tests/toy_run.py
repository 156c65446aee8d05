"""A small run on rendered scenes for tests with Ray: Parquet shards and the config that reads them."""

import io
import os
import signal
import time
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tips_ray.config import RunConfig, override
from tips_ray.data.index_folder import index_of
from tips_ray.data.local_stream import own_rows
from tips_ray.data.stream import CaptionAccess
from tips_ray.runs.checkpoint import newest_checkpoint
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.run import Run
from tips_ray.scenes import render_scene
from tips_ray.tokenizer import train_tokenizer
from tips_ray.train.checkpointing import load_checkpoint
from tips_ray.train.state import new_state

SCENE_PX = 48
NOTED_STEPS = 24
SPEED = ("images_per_second", "data_wait_share", "checkpoint_stall_ms", "time", "health/memory_peak_gib")
_INFORMATION = ("information", "mutual_information")
WINDOWED = [f"health/{head}/{name}" for head in ("distillation", "masked_image") for name in _INFORMATION]
"""Metrics over the last logged steps of a start: after a restart they are missing until its window is full again."""
TINY = {
    "name": "tiny",
    "image": {"width": 16, "depth": 2, "num_heads": 2, "ffn_hidden": 32, "image_size_px": 28},
    "text": {"width": 16, "depth": 1, "num_heads": 2, "ffn_hidden": 32, "vocab_size": 200, "max_tokens": 32},
    "head": {"num_prototypes": 24, "hidden": 32, "bottleneck": 16},
    "schedule": {"total_steps": 12, "peak_lr": 1e-3, "warmup": 0.2},
    "views": {"global_px": 28, "local_px": 14, "local_crops": 2},
    "data": {"sources": [], "chunk_rows": 4, "window_chunks": 3},
    "resources": {"workers": 2, "cpus_per_worker": 1, "data_cpus": 1},
    "global_batch_images": 8,
    "log_every_steps": 1,
    "checkpoint_every_steps": 4,
    "checkpoint_every_minutes": None,  # the same checkpoints at any speed
}


def scene_row(number: int) -> dict[str, Any]:
    """Image and captions of one scene."""
    scene = render_scene(3, number, SCENE_PX)
    buffer = io.BytesIO()
    Image.fromarray(scene.image_HWC).save(buffer, "JPEG", quality=90)
    captions = {"caption": scene.web_caption, "synthetic_caption": scene.synthetic_caption}
    return {"image": buffer.getvalue(), **captions}


def write_scenes(folder: Path, rows: int, bad: Mapping[int, Mapping[str, Any]] = {}, first: int = 0) -> str:  # noqa: B006
    """Parquet files of at most 16 scenes below `folder`; `bad` replaces values of single rows. Returns the folder."""
    folder.mkdir(parents=True)
    table = [{**scene_row(first + number), **bad.get(number, {})} for number in range(rows)]
    for start in range(0, rows, 16):
        part = pa.Table.from_pylist(table[start : start + 16])
        pq.write_table(part, folder / f"{start:04d}.parquet", row_group_size=8)
    return str(folder)


def tiny_run(storage: Path, *sources: str | dict[str, Any], **values: Any) -> RunConfig:
    """The tiny run on `sources` with dotted keys replaced; `__` stands for the dot.

    Below pytest all runs on local storage share a database of MLflow, see `conftest.py`.
    """
    keys = {key.replace("__", "."): value for key, value in values.items()}
    listed = [source if isinstance(source, dict) else {"uri": source} for source in sources]
    database = None if "://" in str(storage) else os.environ.get("TIPS_RAY_TESTS_MLFLOW")
    tracked = {"tracking.mlflow_uri": f"sqlite:///{database}"} if database else {}
    return override(RunConfig, TINY, {"storage": str(storage), "data.sources": listed, **tracked, **keys})


def noted_run(storage: Path, data: str, **values: Any) -> RunConfig:
    """The tiny run of `NOTED_STEPS` steps, which bears bad rows and notes the samples of each step."""
    keys = {"schedule__total_steps": NOTED_STEPS, "data__max_bad_fraction": 0.5, "data__log_samples": True}
    return tiny_run(storage, data, **{**keys, **values})


@contextmanager
def held(config: RunConfig, *pids: int) -> Iterator[None]:
    """Hold workers of a run where they are; when they go on, they look at once for what the block has asked of them.

    Without it a toy run of 50 ms a step may reach its end before they look.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
        time.sleep(config.resources.poll_seconds)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def toy_job(config: RunConfig, uri: str) -> Run:
    """A `Run`, for tests that read no data."""
    return Run(config, uri, index_uri="unused", tokenizer_uri="unused", data_fingerprint="d")


class ToyStream(NamedTuple):
    """The arguments that the streams of a run share."""

    config: RunConfig
    index_uri: str
    tokenizer_uri: str
    captions: CaptionAccess | None = None

    def own_rows(self, start_step: int, rank: int, ranks: int) -> Generator[list[dict[str, Any]]]:
        """See `local_stream.own_rows`."""
        return own_rows(self.config, self.index_uri, self.captions, start_step, rank, ranks)


def toy_stream(root: Path, steps: int) -> ToyStream:
    """Two sources, the second of smaller weight; row 5 is no image and row 21 has no caption."""
    bad = {5: {"image": b"no image"}, 21: {"caption": ""}}
    first, second = write_scenes(root / "a", 40, bad), write_scenes(root / "b", 20, first=40)
    config = tiny_run(root, first, {"uri": second, "weight": 0.5}, schedule__total_steps=steps, micro_batch_images=2)
    index = index_of(config.data, str(root / "index"))
    path = root / "tokenizer.json"
    path.write_bytes(train_tokenizer(["a red sphere on the grey ground"], 60).source)
    return ToyStream(config, index.uri, str(path))


def numbers_of_run(folder: RunFolder, config: RunConfig) -> dict[str, torch.Tensor]:
    """Parameters of student and teacher and the centres of the last checkpoint, which ends the run."""
    found = newest_checkpoint(f"{folder.uri}/checkpoints")
    assert found and found.step == config.schedule.total_steps
    load_checkpoint(state := new_state(config), found)
    networks = {"student": state.student, "teacher": state.teacher, "centers": state.centers}
    return {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}


def metrics_of_run(folder: RunFolder) -> list[dict[str, float]]:
    """Metrics without those of speed and memory, which differ between equal runs, and without `WINDOWED` ones."""
    left_out = {*SPEED, *WINDOWED}
    return [{name: value for name, value in line.items() if name not in left_out} for line in folder.read_metrics()]
