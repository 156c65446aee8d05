"""How much a run's student predicts of its teacher's targets of images that it was not trained on."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tips_ray.batch import Batch
from tips_ray.checkpoint_io import fill_tree
from tips_ray.config import RunConfig
from tips_ray.data.collate import batch_from
from tips_ray.data.order import sample_keys
from tips_ray.data.views import row_settings, training_rows
from tips_ray.objective import self_supervised_terms
from tips_ray.runs.folder import readable_config
from tips_ray.train.checkpointing import NETWORKS, set_weights, stored_weights
from tips_ray.train.health import HEADS, Health, target_sums
from tips_ray.train.information import TargetSums, information
from tips_ray.train.initial_weights import unloaded_teacher
from tips_ray.train.schedules import config_at, prototype_temperatures
from tips_ray.train.state import TrainState, new_state
from tips_ray.weights import WeightsSource, from_whole_checkpoint, source_at

IMAGES_AT_ONCE = 64


def held_out_information(uri: str, images: Sequence[bytes], device: str = "cpu") -> dict[str, float]:
    """`information` and `mutual_information` of both heads, at the centres and temperatures of the checkpoint's step.

    The crops and masks follow from the run's seed and an image's place alone, so that runs with one config can be
    compared image by image. Over N images and K prototypes the values of distillation are at most ln N and ln K.

    Args:
        uri: run folder (its newest checkpoint), or one of its checkpoints, local or s3://.
        images: encoded, in an order that stays the same; 512 of them is usual.
        device: of the networks, such as `cuda`.

    Returns:
        `distillation/information` and so on, in nats, `distillation/winners` (prototypes that win an image, or a
        patch), `images`, `prototypes` and `step`.

    Raises:
        ValueError: there is no run with a whole checkpoint, or an image cannot be read.
    """
    source = source_at("RUN", uri)
    config = readable_config(source.config or {})
    if config is None or source.checkpoint is None:
        raise ValueError(f"RUN ({uri}): its heads are needed; give the folder of a run, or one of its checkpoints")
    state = from_whole_checkpoint(source, lambda one: _loaded(config, one, device))
    return information_of(state, config, images)


def information_of(state: TrainState, config: RunConfig, images: Sequence[bytes]) -> dict[str, float]:
    """As `held_out_information`, of a state whose student is in evaluation mode.

    Raises:
        ValueError: an image cannot be read.
    """
    found = {head: list[TargetSums]() for head in HEADS}
    wins: dict[str, Any] = {}
    device = state.centers.distillation_K.device
    for batch in _batches(config, images):
        for head, (step, wins_K) in _sums(state, batch.to(device, torch.float32), config).items():
            found[head].append(step)
            wins[head] = wins.get(head, 0) + wins_K
    values = {f"{head}/{name}": value for head in HEADS for name, value in information(found[head]).items()}
    winners = {f"{head}/winners": int((wins_K > 0).sum()) for head, wins_K in wins.items()}
    return {**values, **winners, "images": len(images), "prototypes": config.head.num_prototypes, "step": state.step}


def _loaded(config: RunConfig, source: WeightsSource, device: str) -> TrainState:
    """Networks and centres of a checkpoint, without its optimizer."""
    assert source.checkpoint is not None
    state = new_state(config, unloaded_teacher(config), device, is_drawn=False)
    tree: dict[str, Any] = {name: stored_weights(getattr(state, name)) for name in NETWORKS}
    fill_tree(tree, source.checkpoint)
    for name in NETWORKS:
        set_weights(getattr(state, name), tree[name])
    state.student.eval()
    state.step = source.checkpoint.step
    return state


def _batches(config: RunConfig, images: Sequence[bytes]) -> Iterator[Batch]:
    """Images without captions as training rows."""
    settings = replace(row_settings(config, 1), missing="empty")
    keys = sample_keys(config.seed, 0, np.arange(len(images))).tolist()
    for start in range(0, len(images), IMAGES_AT_ONCE):
        rows = [
            {"position": place, "step": 0, "sample_id": place, "sample_key": keys[place], "key": str(place),
             "image": images[place], "web_caption": "", "synthetic_captions": [], "error": ""}
            for place in range(start, min(start + IMAGES_AT_ONCE, len(images)))
        ]  # fmt: skip
        columns = training_rows(rows, settings, lambda texts, tokens: np.zeros((len(texts), tokens), np.int32))
        if not columns["valid"].all():
            place = int(columns["valid"].argmin())
            raise ValueError(f"image {start + place} cannot be used: {columns['reject'][place]}; leave it out")
        yield batch_from(columns)


@torch.no_grad()
def _sums(state: TrainState, batch: Batch, config: RunConfig) -> dict[str, tuple[TargetSums, torch.Tensor]]:
    """Sums of the targets of a batch, and how many rows each prototype wins, by head."""
    at_step = config_at(state.step, config)
    temperatures = prototype_temperatures(state.step, at_step.schedule.total_steps, at_step.objective)
    outputs = state.student(batch)
    scores = state.teacher(batch, outputs.clean)
    valid = batch.valid_B.sum()
    terms = self_supervised_terms(outputs, scores, state.centers, batch, at_step.objective, temperatures, valid)
    health = Health(at_step.objective)
    health.expect(is_logged=True)
    health.see_targets(scores, state.centers, batch, temperatures)
    sums = {name: value.cpu() for name, value in {**health.sums, "valid": valid}.items()}
    return {head: (target_sums(head, sums, loss.item()), sums[f"{head}/wins"]) for head, loss in terms.items()}
