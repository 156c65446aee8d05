"""A suite on Ray: one Ray task per data set runs its tasks; a Ray Data actor pool encodes the images."""

from collections.abc import Iterator, Sequence
from typing import Any, cast

import numpy as np
import ray
import ray.data
import torch
from ray.data import ActorPoolStrategy
from torch import Tensor

from tips_ray.config.evaluation import RayConfig, SuiteConfig
from tips_ray.evaluation.encoder_place import EncoderPlace
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.features import EncodeBatch, Encoding
from tips_ray.evaluation.load_encoder import placed_encoder
from tips_ray.evaluation.suite_tasks import EndedTask, by_data, tasks_here
from tips_ray.ray_data_adapter import in_order

IMAGES = "data"
"""The column of `ray.data.from_numpy`."""


def tasks_on_ray(
    encoder: Encoder, place: EncoderPlace, suite: SuiteConfig, config: RayConfig, names: Sequence[str]
) -> Iterator[EndedTask]:
    """Run the named tasks on the Ray cluster that this process has joined; yield them as they end.

    Args:
        encoder: encoder to evaluate.
        place: place of the same encoder.
        suite: tasks and data sets; its folders must be there on every node.
        config: actors and CPUs.
        names: names of tasks.

    Raises:
        RayError: a task cannot be scored, or its process was lost repeatedly.
    """
    task: Any = ray.remote(num_cpus=config.cpus_per_task, num_returns="streaming")(_tasks_of_a_data_set)
    waiting, running = list(by_data(suite, names, encoder).values()), []
    while waiting or running:
        while waiting and len(running) < data_sets_at_a_time(config, ray.cluster_resources()["CPU"]):
            running.append(task.remote(place, suite, config, waiting.pop(0)))
        (ended,), _ = cast("Any", ray.wait(running, fetch_local=False))
        try:
            yield cast("EndedTask", ray.get(next(ended)))
        except StopIteration:
            running.remove(ended)


def data_sets_at_a_time(config: RayConfig, cpus: float) -> int:
    """Number of data sets that leaves room for one actor; without it, all tasks would wait for the pool forever."""
    return max(int((cpus - config.cpus_per_actor) / config.cpus_per_task), 1)


def _tasks_of_a_data_set(
    place: EncoderPlace, suite: SuiteConfig, config: RayConfig, names: Sequence[str]
) -> Iterator[EndedTask]:
    encoder = placed_encoder(place, config.cpus_per_task, gpus=0)
    yield from tasks_here(encoder, suite, _encoding_by_actors(place, config, suite.batch_images), names)


def _encoding_by_actors(place: EncoderPlace, config: RayConfig, batch_images: int) -> Encoding:
    def encoding(encode: EncodeBatch, images_NSS3: Tensor) -> Iterator[dict[str, Tensor]]:
        stream = ray.data.from_numpy([part.numpy() for part in images_NSS3.split(batch_images)]).map_batches(
            EncodeActor,
            fn_constructor_kwargs={"place": place, "config": config, "encode": encode},
            batch_size=batch_images,
            batch_format="numpy",
            compute=ActorPoolStrategy(min_size=1, max_size=config.actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        )
        for batch in in_order(stream).iter_batches(batch_size=None, batch_format="numpy"):
            yield {str(name): torch.tensor(part) for name, part in batch.items()}

    return encoding


class EncodeActor:
    """Actor with one encoder, on a GPU if the actor holds a share of one."""

    def __init__(self, place: EncoderPlace, config: RayConfig, encode: EncodeBatch) -> None:
        self.encoder, self.encode = placed_encoder(place, config.cpus_per_actor, config.gpus_per_actor), encode

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = self.encode(self.encoder, torch.tensor(batch[IMAGES]))
        return {name: part.cpu().numpy() for name, part in found.items()}
