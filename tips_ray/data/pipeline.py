"""Ray Data: the rest of a run as one stream of training rows, in the order of `data.order`.

m rows of a block. The source is a range of window numbers in few blocks, expanded while streaming across epoch borders.
All blocks have exactly m rows and keep their order, so that a streaming split deals them round-robin: with W workers
the union of the workers' k-th batches is the k-th global batch, whatever W (measured; docs/decisions/0002-stream.md).
"""

import importlib
import os
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.actor import ActorHandle
from ray.data import ActorPoolStrategy, Dataset, ExecutionOptions, ExecutionResources, TaskPoolStrategy
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.train import DataConfig as TrainDataConfig

from tips_ray.config import RunConfig
from tips_ray.data.captions.coordinator import News
from tips_ray.data.captions.join import Waiting
from tips_ray.data.index import opened_index
from tips_ray.data.order import OrderedRows
from tips_ray.data.stream import StreamInputs, order_of, ordered_rows, read_chunks, views

STEP_SECONDS = 0.01
"""Pause of Ray Data's loop in each of its steps; what a step has to hand on may be late by this much."""
OF_TASKS = {"max_retries": 10}
"""How often a task whose process dies is begun again. Ray Data would begin again for ever."""
OF_ACTORS = {"max_restarts": 100, "max_task_retries": 10}
"""Actors lose nodes in long runs; work that kills its process each time ends the stream."""
TORCH_IS_BROKEN = "can only be initialized once per process"
WINDOWS_AT_ONCE = 2
"""Windows that are read at a time, per CPU of the data stream."""
_ROW = pa.schema(
    [("position", pa.int64()), ("step", pa.int64()), ("sample_id", pa.int64()), ("sample_key", pa.int64())]
    + [("key", pa.string()), ("image", pa.binary()), ("web_caption", pa.string())]
    + [("synthetic_captions", pa.list_(pa.string())), ("error", pa.string())]
)


def training_stream(inputs: StreamInputs, start_step: int) -> Dataset:
    """Training rows of the steps [start_step, total_steps), in blocks of exactly `images_per_pass` rows.

    Reading holds no CPU either: it mostly waits, and with one CPU for the stream no view would be made meanwhile.
    """
    config = inputs.config
    start, stop = (step * config.global_batch_images for step in (start_step, config.schedule.total_steps))
    windows = order_of(inputs).windows(start, stop)
    rows = config.images_per_pass
    read: Any = partial(_read_windows, inputs=inputs, start=start, stop=stop)
    make_views: Any = partial(_views, inputs=inputs)
    stream = (
        handed_out(pa.table({"window": pa.array(windows, pa.int64())}), 1)
        .map_batches(
            read,
            batch_size=1,
            batch_format="numpy",
            compute=TaskPoolStrategy(WINDOWS_AT_ONCE * config.resources.data_cpus),
            num_cpus=0,
        )
        .map_batches(make_views, batch_size=rows, batch_format="pyarrow", resources=config.resources.role("data"))
        .repartition(target_num_rows_per_block=rows, strict=True)
    )
    _join_last_stages(stream)
    return stream


def handed_out(table: pa.Table, rows: int) -> Dataset:
    """Blocks of so many rows of a table, in its order, by one task that holds no CPU.

    Ray's own readers would hold one each until the last block is handed out, which takes minutes where there are many:
    with one CPU for the stream, all that comes after would begin then. `from_arrow` holds one as well, to count rows,
    and its caller waits: for ever where that is Ray Train's controller and workers have just taken the last CPU.
    """
    dataset = ray.data.from_blocks([table]).repartition(target_num_rows_per_block=rows)
    stage: Any = dataset._logical_plan.dag
    stage.ray_remote_args["num_cpus"] = 0  # `repartition` takes no arguments for its tasks
    return dataset


def _join_last_stages(stream: Dataset) -> None:
    """Make Ray run `repartition` in the tasks of the stage before, which get full batches so.

    It does so where both ask for the same resources. On its own it wants a CPU too, which Ray may never give it while
    the first stage's tasks wait for training.
    """
    last: Any = stream._logical_plan.dag
    last.ray_remote_args.update(last.input_dependencies[0].ray_remote_args)


def in_order(dataset: Dataset, limits: ExecutionResources | None = None) -> Dataset:
    """What it hands on keeps its source's order; no progress bar of each stage, the program shows its own.

    What kills its process again and again ends it.

    Args:
        limits: what it may plan with; None: all that is free.
    """
    dataset.context.execution_options = ExecutionOptions(preserve_order=True, resource_limits=limits)
    dataset.context.enable_progress_bars = False
    _limit_restarts(dataset._logical_plan.dag)
    return dataset


def _limit_restarts(stage: Any) -> None:
    """Of this stage and those before it; `map_batches` has no argument for it but such as are deprecated."""
    if hasattr(stage, "ray_remote_args"):
        is_actors = isinstance(getattr(stage, "compute", None), ActorPoolStrategy)
        stage.ray_remote_args.update(OF_ACTORS if is_actors else OF_TASKS)
    for earlier in stage.input_dependencies:
        _limit_restarts(earlier)


def tell_pace(inputs: StreamInputs, step: int) -> None:
    """Training is at `step`: it and the next are due, with the batches that wait ready, and the lead of captioning.

    Not less: a worker's iterator hands out no batch before those that it keeps ready are there.
    """
    if inputs.pace:
        config = inputs.config
        ready = config.resources.workers * config.data_prefetch_batches * config.images_per_pass
        stop = (step + 2) * config.global_batch_images + ready
        inputs.pace.want.remote(order_of(inputs).window_of(stop - 1))


def followed(inputs: StreamInputs, stream: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The stream of one worker, which tells captioning beside training where it is and how long it has waited."""
    asked = time.monotonic()
    for columns in stream:
        if inputs.pace:
            inputs.pace.add_waited.remote(time.monotonic() - asked)
            tell_pace(inputs, int(columns["step"][0]))
        yield columns
        asked = time.monotonic()


class Breath(ExecutionCallback):
    """A pause in each step of Ray Data's loop, which else turns without one while all of its stages are held back.

    That is the usual state where training is slower than the stream, and cost a third of a core.
    """

    def on_execution_step(self, executor):
        time.sleep(STEP_SECONDS)


class InOrder(TrainDataConfig):
    """Deals blocks to workers in their order; Ray's own configuration would cut them to equal shares and drop rows."""

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):
        output: list[dict[str, Any]] = [{} for _ in range(world_size)]
        for name, dataset in datasets.items():
            dataset.context.custom_execution_callback_classes = [Breath]
            for place, split in zip(output, in_order(dataset).streaming_split(world_size, equal=False), strict=True):
                place[name] = split
        return output


def _read_windows(batch: dict[str, np.ndarray], inputs: StreamInputs, start: int, stop: int) -> Iterator[pa.Table]:
    """Ordered rows at positions [start, stop) of each window, a part of a window at a time."""
    index, order = opened_index(inputs.index_uri), order_of(inputs)
    waiting = waiting_for(inputs.pace, inputs.config) if inputs.pace else None
    for window in batch["window"].tolist():
        rows = order.window_rows(window).between(start, stop)
        if inputs.pace:
            ray.get(inputs.pace.admit.remote(window))
        chunks = read_chunks(index, rows, inputs.store, waiting)
        for first in range(0, len(rows.position_N), inputs.config.images_per_pass):
            part = OrderedRows(*(column[first : first + inputs.config.images_per_pass] for column in rows))
            yield pa.Table.from_pylist(ordered_rows(part, chunks), schema=_ROW)


def waiting_for(pace: ActorHandle, config: RunConfig) -> Waiting:
    """How long to wait for captions that are made beside training.

    The pause is a call of an actor, not a sleep: a task that waits for an answer lends its CPU to others meanwhile.
    Captions of the windows to come would else hold the CPUs that views of the first one need.
    """
    return Waiting(config.captions.wait_seconds, lambda seconds: News(*ray.get(pace.news.remote(seconds))))


def _views(table: pa.Table, inputs: StreamInputs) -> dict[str, np.ndarray]:
    leave_half_imported()
    return views(table.to_pylist(), inputs)


def leave_half_imported() -> None:
    """End this process if torch cannot be imported in it any more; Ray takes the task to another one.

    A task that is cancelled while it imports torch, as all are when a node goes, leaves a process in which every later
    task would fail, and with them every restart of the run.
    """
    try:
        importlib.import_module("torch")
    except ImportError as error:
        if TORCH_IS_BROKEN in str(error):
            os._exit(1)
        raise
