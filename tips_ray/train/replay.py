"""Repeat a bad step on one process: the gradients of the global batch, with a look at every tensor on the way."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

from tips_ray.config import RunConfig, TrainConfig, override
from tips_ray.runs.folder import read_run_config
from tips_ray.train.checkpointing import load_checkpoint
from tips_ray.train.first_bad import FirstBad, Watch
from tips_ray.train.guard import BadStep, Rows
from tips_ray.train.schedules import config_at
from tips_ray.train.state import TrainState
from tips_ray.train.step import accumulate_gradients, clip_gradients
from tips_ray.train.worker_loop import prepared_state

_LEFT_OUT = {"recompute": "none", "compile": False, "replicas": 1}
"""Settings that a replay replaces: they change numbers only by rounding, and hooks must see every module once."""


@dataclass(frozen=True)
class Replay:
    """Result of a step on one process."""

    metrics: dict[str, float]
    """Metrics of the global batch."""
    first: FirstBad | None
    rank: int | None
    """Rank that held the micro-batch of `first`, where `micro_batch` is its index; None: all ranks."""
    micro_batch: int | None
    rows: Rows
    """`sample_id` and `key` of the images that `first` names, if the run wrote them down."""

    def is_reproduced(self, bad_step: BadStep) -> bool:
        """Loss and gradient norm are finite here where they were finite there."""
        names = ("loss/total", "grad_norm")
        return all(isfinite(self.metrics[name]) == isfinite(bad_step.metrics[name]) for name in names)


def replay(bad_step: BadStep, run_uri: str, device: torch.device) -> Replay:
    """Repeat `bad_step` without an update.

    All ranks' micro-batches become this process's: K micro-batches on W ranks and K x W on one have equal gradients.
    Recomputation, compilation and copies of the weights are left out.

    Args:
        bad_step: one of the run's.
        run_uri: run folder, which holds the config.
        device: its memory holds all networks and the global batch.
    """
    config = override(
        RunConfig, read_run_config(run_uri), {f"resources.{key}": value for key, value in _LEFT_OUT.items()}
    )
    read = [bad_step.read_batches(rank) for rank in range(bad_step.workers)]
    batches = [batch.to(device, batch.global_crops_BCHW.dtype) for of_rank, _ in read for batch in of_rank]
    rows = [part for _, of_rank in read for part in of_rank]
    with _group_of_one(device):
        state = prepared_state(config, device, is_drawn=False)
        load_checkpoint(state, bad_step.checkpoint())
        watch = Watch(state.student, state.teacher, batches)
        metrics = _watched_step(state, watch, config)
    return _located(metrics, watch.first, len(batches) // bad_step.workers, rows)


def _watched_step(state: TrainState, watch: Watch, config: TrainConfig) -> dict[str, float]:
    watch.look_at_inputs()
    config = config_at(state.step, config)
    terms, _ = accumulate_gradients(state, watch.batches, config.objective, config.schedule.total_steps)
    watch.look_at_losses(terms)
    watch.look_at_gradients()
    metrics = {f"loss/{name}": term for name, term in terms.items()} | {"grad_norm": clip_gradients(state, config)}
    return {name: value.item() for name, value in metrics.items()}


def _located(metrics: dict[str, float], first: FirstBad | None, per_rank: int, rows: list[Rows]) -> Replay:
    if first is None or first.micro_batch is None:
        return Replay(metrics, first, None, None, {})
    images = first.images or ()
    called = rows[first.micro_batch] if rows else {}
    named = {name: [called[name][image] for image in images] for name in ("sample_id", "key") if name in called}
    return Replay(metrics, first, *divmod(first.micro_batch, per_rank), named)


@contextmanager
def _group_of_one(device: torch.device) -> Iterator[None]:
    """A process group of one: FSDP needs one to compute in bf16 as in training."""
    backend = "nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()
