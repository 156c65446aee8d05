"""Initial weights of a run: another run's, released ones, and those of a frozen teacher."""

import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions
from torch.distributed.tensor import DTensor, distribute_tensor

from tips_ray import storage
from tips_ray.checkpoint_io import fill_tree
from tips_ray.config import ImageEncoderConfig, PrototypeHeadConfig, TrainConfig
from tips_ray.distributed import gather_objects, rank
from tips_ray.models import load_official_image, load_official_text, load_transformers, official_temperature
from tips_ray.models.networks import Heads, Teacher
from tips_ray.models.vision import ImageEncoder, resized_positions
from tips_ray.runs.checkpoint import digest_of
from tips_ray.train.checkpointing import set_weights, stored_weights
from tips_ray.train.state import TrainState
from tips_ray.weights import WeightsSource, from_whole_checkpoint, start_source, teacher_sizes, teacher_source

Result = TypeVar("Result")
Tensors = dict[str, Any]
_POSITIONS = "image.pos_embed"


def load_initial_weights(state: TrainState, config: TrainConfig) -> dict[str, dict[str, Any]]:
    """Fill a new state, sharded or not, with the weights that the config names; every rank calls this at step 0.

    Returns:
        The weights sources for the run's `start` event: `uri`, `kind` and `fingerprint` (sha256) by the config key.

    Raises:
        ValueError: the weights are missing, damaged, or of other sizes; every rank raises.
    """
    found = {}
    if config.start:
        source = _from_first_rank(lambda: start_source(config))
        is_run = source.checkpoint is not None
        load = partial(_load_run, state) if is_run else partial(_load_released, state, config)
        found["start"] = from_whole_checkpoint(source, load) if is_run else load(source)
    if config.objective.frozen_teacher:
        source = _from_first_rank(lambda: teacher_source(config))
        found["frozen_teacher"] = from_whole_checkpoint(source, partial(_load_teacher, state))
    return found


def unloaded_teacher(config: TrainConfig) -> Teacher | None:
    """The network of `objective.frozen_teacher` with its own sizes, on the meta device; None where none is named."""
    if config.objective.frozen_teacher is None:
        return None
    sizes = teacher_sizes(config)
    with torch.device("meta"):
        image = ImageEncoder(ImageEncoderConfig(**sizes["image"]))
        heads = Heads(image.config.width, PrototypeHeadConfig(**sizes["head"]))
        return Teacher(image, heads, config.objective)


def _load_run(state: TrainState, source: WeightsSource) -> dict[str, Any]:
    """Load all but optimizer and step; only the student if the config has a frozen teacher."""
    student, teacher = stored_weights(state.student), stored_weights(state.teacher)
    averaged = {name: like for name, like in teacher.items() if source.teacher_part(name) == "teacher"}
    wanted = {"student": student, "teacher": averaged, "centers": stored_weights(state.centers)}
    if state.teacher.config.teacher == "frozen":
        wanted = {"student": student}
    read = _read(wanted, source)
    set_weights(state.student, read["student"])
    if len(read) > 1:
        _set_teacher(state, read["teacher"])
        set_weights(state.centers, read["centers"])
    return _run_description(source)


def _load_teacher(state: TrainState, source: WeightsSource) -> dict[str, Any]:
    wanted: dict[str, Tensors] = {"centers": stored_weights(state.centers), "student": {}, "teacher": {}}
    for name, like in stored_weights(state.teacher).items():
        wanted[source.teacher_part(name)][name] = like
    read = _read({part: tensors for part, tensors in wanted.items() if tensors}, source)
    set_weights(state.teacher, {**read.get("student", {}), **read.get("teacher", {})})
    set_weights(state.centers, read["centers"])
    return _run_description(source)


def _set_teacher(state: TrainState, averaged: Tensors) -> None:
    """Set the teacher to a copy of the student, except for the tensors in `averaged`."""
    student = stored_weights(state.student)
    copied = {name: student[name] for name in stored_weights(state.teacher)}
    set_weights(state.teacher, {**copied, **averaged})


def _read(wanted: dict[str, Tensors], source: WeightsSource) -> dict[str, Tensors]:
    """`wanted`, filled in place from a checkpoint; positions of another grid are in a new tensor."""
    stored = {part: {name: _as_stored(name, like, source) for name, like in wanted[part].items()} for part in wanted}
    assert source.checkpoint is not None
    fill_tree(stored, source.checkpoint)
    return {
        part: {name: _like(stored[part][name], like) for name, like in tensors.items()}
        for part, tensors in wanted.items()
    }


def _as_stored(name: str, like: Tensor, source: WeightsSource) -> Tensor:
    shape = (1, 1 + source.grid**2, like.shape[-1])
    if name != _POSITIONS or like.shape == shape:
        return like
    return torch.empty(shape, dtype=like.dtype, device=like.device)  # whole on every rank


def _like(stored: Tensor, like: Tensor) -> Tensor:
    """Positions resampled and sharded as `like` is; other tensors unchanged."""
    if stored is like:
        return stored
    resized = _on_grid(stored, math.isqrt(like.shape[1] - 1))
    if isinstance(like, DTensor):
        return distribute_tensor(resized, like.device_mesh, like.placements, src_data_rank=None)
    return resized


def _on_grid(positions_1LD: Tensor, grid: int) -> Tensor:
    """Learned positions, that of CLS-web first, for `grid` x `grid` patches."""
    web_1D, patches_LD = positions_1LD[0, :1], positions_1LD[0, 1:]
    if len(patches_LD) == grid**2:
        return positions_1LD
    return torch.cat([web_1D, resized_positions(patches_LD, grid, grid).to(web_1D.dtype)])[None]


def _load_released(state: TrainState, config: TrainConfig, source: WeightsSource) -> dict[str, Any]:
    """Load encoders and temperature; heads keep their random values, the teacher becomes a copy of the student."""
    tensors: Tensors = {}

    def read() -> dict[str, Any]:
        with _local(source.files) as paths:
            tensors.update(_released_tensors(source, paths, config))
            return _description(source, {name: digest_of(path) for name, path in paths.items()})

    told = _from_first_rank(read)
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=dist.is_initialized(), strict=False)
    set_weights(state.student, tensors, options=options)
    if state.teacher.config.teacher != "frozen":
        _set_teacher(state, {})
    return told


def _released_tensors(source: WeightsSource, paths: dict[str, Path], config: TrainConfig) -> Tensors:
    """Released tensors under the student's names."""
    if source.kind == "transformers":
        model = load_transformers(paths["config.json"].parent)
        image, text, temperature = model.image, model.text, model.temperature
    else:
        image = load_official_image(paths["image"], config.image.num_heads) if "image" in paths else None
        text = load_official_text(paths["text"], config.text.num_heads) if "text" in paths else None
        temperature = official_temperature(paths["text"]) if "text" in paths else None
    tensors = {**_named("image.", image), **_named("text.", text)}
    if image is not None:
        tensors[_POSITIONS] = _on_grid(tensors[_POSITIONS], config.image.grid)
    if temperature is not None:
        tensors["log_temperature"] = torch.tensor([temperature]).log()
    return tensors


def _named(prefix: str, encoder: nn.Module | None) -> Tensors:
    return {} if encoder is None else {prefix + name: value for name, value in encoder.state_dict().items()}


@contextmanager
def _local(files: dict[str, str]) -> Iterator[dict[str, Path]]:
    """Local paths of files, in one folder; what is remote is copied for as long as the block lasts."""
    if all(map(storage.is_local, files.values())):
        yield {name: Path(uri) for name, uri in files.items()}
        return
    with tempfile.TemporaryDirectory() as folder:
        paths = {name: Path(folder, uri.rsplit("/", 1)[1]) for name, uri in files.items()}
        for name, uri in files.items():
            storage.download(uri, paths[name])
        yield paths


def _run_description(source: WeightsSource) -> dict[str, Any]:
    assert source.checkpoint is not None
    return {**_description(source, source.checkpoint.manifest), "checkpoint": source.checkpoint.uri}


def _description(source: WeightsSource, content: dict[str, Any]) -> dict[str, Any]:
    """The weights source as an event records it; the fingerprint is a hash of `content`."""
    fingerprint = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {"uri": source.uri, "kind": source.kind, "fingerprint": fingerprint}


def _from_first_rank(action: Callable[[], Result]) -> Result:
    """Result of `action` on rank 0, the only one that reads; its error is raised on all ranks."""
    outcome: Any = None
    if rank() == 0:
        try:
            outcome = action()
        except (ValueError, OSError) as error:
            outcome = error if isinstance(error, storage.StorageError) else ValueError(str(error))
    outcome = gather_objects(outcome)[0]
    if isinstance(outcome, ValueError):
        raise outcome
    return outcome
