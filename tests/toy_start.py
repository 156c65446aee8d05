"""Toy weights sources: a run that has trained, a release, a transformers folder."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from toy import toy_batch, toy_config
from toy_model import toy_model

from tips_ray import storage
from tips_ray.config import TrainConfig
from tips_ray.distributed import world_size
from tips_ray.models import TipsModel
from tips_ray.models.official import released_image_name, released_text_name
from tips_ray.train.checkpointing import save_checkpoint
from tips_ray.train.initial_weights import load_initial_weights, unloaded_teacher
from tips_ray.train.parallelize import shard
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import train_step


def trained_run(uri: str, *steps: int, **values: Any) -> TrainState:
    """A toy run in the folder `uri` with a checkpoint at each of `steps`; returns its state at the last."""
    config = toy_config(**values)
    tree = {**config.model_dump(mode="json"), "captions": {"tokenizer": None}}
    storage.write_text(storage.join(uri, "config.yaml"), yaml.safe_dump(tree))
    state = begun(config)
    while state.step < steps[-1]:
        train_step(state, [toy_batch(4, seed=state.step).to("cpu", torch.get_default_dtype())], config)
        if state.step in steps:
            save_checkpoint(state, storage.join(uri, "checkpoints"), {})
    return state


def begun(config: TrainConfig) -> TrainState:
    """A new state with the initial weights of the config; sharded if there are several ranks."""

    def prepare(student, teacher):
        shard(student, teacher, init_device_mesh("cpu", (world_size(),)), torch.get_default_dtype())

    state = new_state(config, unloaded_teacher(config), prepare=prepare if world_size() > 1 else None)
    load_initial_weights(state, config)
    return state


def numbers(state: TrainState) -> dict[str, Tensor]:
    """Student, teacher and centres, gathered from all ranks."""
    networks = {"student": state.student, "teacher": state.teacher, "centers": state.centers}
    found = {f"{name}.{key}": value for name, net in networks.items() for key, value in net.state_dict().items()}
    whole = {key: value.full_tensor() if isinstance(value, DTensor) else value for key, value in found.items()}
    return {key: value.clone() for key, value in whole.items()}


def released(folder: Path, **image_sizes: Any) -> TipsModel:
    """A model as `vision.npz` and `text.npz`."""
    model = toy_model(**image_sizes)
    image_name = released_image_name(model.image.config.ffn)
    image = {image_name(name): value.float().numpy() for name, value in model.image.state_dict().items()}
    text = {released_text_name(name): value.float().numpy() for name, value in model.text.state_dict().items()}
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "vision.npz", **image)
    np.savez(folder / "text.npz", **text, temperature=np.float32(model.temperature))
    return model


def sizes_of(model: TipsModel) -> dict[str, Any]:
    """Keys of a config that fits the model."""
    return {"image": model.image.config.model_dump(), "text": model.text.config.model_dump()}
