"""Ray Data's internals: order of blocks, restarts of tasks, the actor that assigns nodes. Imports no torch.

Every process that plans, reads or hands out rows imports this module.
"""

import importlib
import os
import time
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, ExecutionResources
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import (
    HEAD_NODE_RESOURCE_LABEL,
    _AutoscalingCoordinatorActor,
)
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import DataConfig as TrainDataConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

STEP_SECONDS = 0.01
"""Pause in each step of Ray Data's loop; the output of a step may be late by this much."""
OF_TASKS = {"max_retries": 10}
"""How often a task is retried when its process dies. Ray Data itself would retry for ever."""
OF_ACTORS = {"max_restarts": 100, "max_task_retries": 10}
"""Actors lose nodes in long runs; work that kills its process repeatedly ends the stream."""
TORCH_IS_BROKEN = "can only be initialized once per process"
RENEWED_SECONDS = 5
"""How often a run asks again for its workers; Ray Data asks again every 10 s."""
FORGOTTEN_SECONDS = 25
"""A request for nodes that is not repeated expires after this long; Ray's default is three minutes."""


def handed_out(table: pa.Table, rows: int) -> Dataset:
    """Blocks of `rows` rows of a table, in its order, made by one task that holds no CPU.

    Ray's own readers would hold one CPU each until the last block is handed out, which takes minutes for many blocks:
    with one CPU for the stream, all later stages would begin only then. `from_arrow` holds one as well, to count rows,
    and its caller waits: for ever if that is Ray Train's controller and workers have just taken the last CPU.
    """
    dataset = ray.data.from_blocks([table]).repartition(target_num_rows_per_block=rows)
    stage: Any = dataset._logical_plan.dag
    stage.ray_remote_args["num_cpus"] = 0  # `repartition` takes no arguments for its tasks
    return dataset


def join_last_stages(stream: Dataset) -> None:
    """Make Ray run `repartition` in the tasks of the stage before, which then get full batches.

    Ray does so if both request the same resources. On its own `repartition` needs a CPU too, which Ray may never give
    it while the first stage's tasks wait for training.
    """
    last: Any = stream._logical_plan.dag
    last.ray_remote_args.update(last.input_dependencies[0].ray_remote_args)


def in_order(dataset: Dataset, limits: ExecutionResources | None = None) -> Dataset:
    """Make a dataset keep its source's order, and show no progress bars: the program shows its own.

    Work that kills its process repeatedly ends the stream.

    Args:
        limits: resources that it may use; None: all that are free.
    """
    dataset.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
    dataset.context.enable_progress_bars = False
    _limit_restarts(dataset._logical_plan.dag)
    return dataset


def _limit_restarts(stage: Any) -> None:
    """Limit restarts of this stage and those before it; `map_batches` has only deprecated arguments for it."""
    if hasattr(stage, "ray_remote_args"):
        is_actors = isinstance(getattr(stage, "compute", None), ActorPoolStrategy)
        stage.ray_remote_args.update(OF_ACTORS if is_actors else OF_TASKS)
    for earlier in stage.input_dependencies:
        _limit_restarts(earlier)


class LoopPause(ExecutionCallback):
    """A pause in each step of Ray Data's loop, which otherwise spins while all stages are held back.

    That is the usual state when training is slower than the stream, and cost a third of a core.
    """

    def on_execution_step(self, executor):
        time.sleep(STEP_SECONDS)


class InOrder(TrainDataConfig):
    """Deals blocks to workers in their order; Ray's own configuration would cut them to equal shares and drop rows.

    What is not a Ray dataset has a method `split(workers)` of its own.
    """

    def configure(self, datasets: Any, world_size, worker_handles, worker_node_ids, **kwargs):
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            splits = _dealt(dataset, world_size) if isinstance(dataset, Dataset) else dataset.split(world_size)
            for place, split in zip(output, splits, strict=True):
                place[name] = split
        return output


def _dealt(dataset: Dataset, workers: int) -> list[Any]:
    dataset.context.custom_execution_callback_classes = [LoopPause]
    return in_order(dataset).streaming_split(workers, equal=False)


def near(node_id: str) -> NodeAffinitySchedulingStrategy:
    """A task runs on this node if it has room, else elsewhere; without the private argument it would wait."""
    return NodeAffinitySchedulingStrategy(node_id, soft=True, _spill_on_unavailable=True)


def leave_half_imported() -> None:
    """End this process if torch cannot be imported in it any more; Ray takes the task to another one.

    A task that is cancelled while it imports torch, as all are when a node is lost, leaves a process in which all later
    tasks would fail, and with them every restart of the run.
    """
    try:
        importlib.import_module("torch")
    except ImportError as error:
        if TORCH_IS_BROKEN in str(error):
            os._exit(1)
        raise


class Coordinator(_AutoscalingCoordinatorActor):
    """Assigns the nodes; requests of a killed driver expire soon.

    Otherwise the driver that continues the run would lack these nodes.
    """

    def __init__(self, tick_seconds: float, **given: Any) -> None:
        self.TICK_INTERVAL_S = tick_seconds
        super().__init__(**given)

    def request_resources(self, *args: Any, expire_after_s: float, **kwargs: Any) -> None:
        super().request_resources(*args, expire_after_s=min(expire_after_s, FORGOTTEN_SECONDS), **kwargs)


def start_coordinator(tick_seconds: float) -> None:
    """Start the `Coordinator` on the head node, before Ray starts its own elsewhere with a slow tick.

    Ray pins it to the node of its first caller, and finds it by its name; without it no group changes any more.
    """
    head = next(node["NodeID"] for node in ray.nodes() if HEAD_NODE_RESOURCE_LABEL in node["Resources"])
    name = "AutoscalingCoordinator"
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1, max_task_retries=-1)(Coordinator)
    place = NodeAffinitySchedulingStrategy(head, soft=False)
    actor.options(name=name, namespace=name, get_if_exists=True, lifetime="detached", scheduling_strategy=place).remote(
        tick_seconds
    )
