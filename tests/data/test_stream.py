"""The training stream through real Ray Data: on any number of workers, the global batches of `data.order`."""

import os
import random
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.data import Dataset
from ray.data._internal.logical.optimizers import get_execution_plan
from ray.exceptions import WorkerCrashedError
from ray.util.placement_group import placement_group, remove_placement_group
from toy_run import ToyStream, toy_stream

from tips_ray import ray_data_adapter
from tips_ray.config import RunConfig, override
from tips_ray.data.columns import TRAINING_DTYPES
from tips_ray.data.index import run_order
from tips_ray.data.index_folder import index_of
from tips_ray.data.pipeline import training_stream
from tips_ray.data.shared_stream import SharedStream, WorkerStream
from tips_ray.data.views import row_settings, training_rows
from tips_ray.ray_data_adapter import InOrder, handed_out, in_order
from tips_ray.tokenizer import load_tokenizer

pytestmark = pytest.mark.ray
STEPS = 13
"""104 rows of which an epoch of the first source has 40."""
DELAY_SECONDS = 0.03


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> ToyStream:
    return toy_stream(tmp_path_factory.mktemp("stream"), STEPS)


@pytest.fixture(scope="module")
def expected(inputs) -> dict[str, np.ndarray]:
    """All rows of the run, made without Ray."""
    config = inputs.config
    index = index_of(config.data, inputs.index_uri.rpartition("/")[0])
    rows = run_order(index, config.data, config.seed, config.global_batch_images).rows(0, STEPS * 8)
    found = [
        {**index.read(int(chunk))[row], "position": position, "step": step, "sample_key": key}
        for position, step, chunk, row, key in zip(
            rows.position_N, rows.step_N, rows.chunk_N, rows.row_N, rows.sample_key_N, strict=True
        )
    ]
    return training_rows(found, row_settings(config, 1), load_tokenizer(inputs.tokenizer_uri))


def _consumed(
    stream: Dataset | SharedStream, workers: int, rows: int, delays: random.Random
) -> list[list[dict[str, np.ndarray]]]:
    """The batches of each worker, taken at random times as Ray Train's workers would."""
    splits = InOrder().configure({"train": stream}, workers, None, None)
    batches: list[list[dict[str, np.ndarray]]] = [[] for _ in range(workers)]

    def consume(worker: int, waits: random.Random) -> None:
        for batch in splits[worker]["train"].iter_batches(batch_size=rows, batch_format="numpy"):
            time.sleep(waits.random() * DELAY_SECONDS)
            batches[worker].append(batch)

    waits = [random.Random(delays.random()) for _ in range(workers)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(consume, range(workers), waits))
    return batches


def _shared(inputs: ToyStream, start_step: int, **resources: Any) -> SharedStream:
    """A shared stream with two readers."""
    values = {"workers": 9, "stream": "shared", **resources}
    config = inputs.config.model_copy(update={"resources": inputs.config.resources.model_copy(update=values)})
    return SharedStream(config, inputs.index_uri, inputs.tokenizer_uri, None, start_step)


def _delayed(dataset: Dataset) -> Dataset:
    def wait(batch: Any) -> Any:  # a closure travels to Ray's workers by value
        time.sleep(random.random() * DELAY_SECONDS)
        return batch

    return dataset.map_batches(wait, batch_size=None, num_cpus=0.5)  # another number would make it a separate stage


def test_a_task_that_kills_its_process_each_time_ends_the_stream(cluster, monkeypatch):
    monkeypatch.setitem(ray_data_adapter.OF_TASKS, "max_retries", 1)
    stream = in_order(handed_out(pa.table({"chunk": [0]}), 1).map_batches(lambda batch: os._exit(1)))
    with pytest.raises(WorkerCrashedError):
        list(stream.iter_batches())


def test_nothing_before_the_views_holds_a_cpu(cluster, inputs):
    """Windows are handed out for minutes in a long run: with one CPU for the stream no view would be made meanwhile."""
    operator: Any = training_stream(*inputs, start_step=0)._logical_plan.dag
    cpus = {}
    while (operator := operator.input_dependencies[0]).input_dependencies:
        cpus[operator.name.partition("[")[0]] = operator.ray_remote_args.get("num_cpus", 1)
    assert cpus == {"MapBatches(_views)": 1, "MapBatches(_read_windows)": 0, "StreamingRepartition": 0}


@pytest.mark.parametrize("roles", [False, True])
def test_blocks_are_cut_by_the_tasks_that_make_the_views(cluster, inputs, roles):
    config = override(RunConfig, inputs.config.model_dump(mode="json"), {"resources.roles": roles})
    plan, _ = get_execution_plan(training_stream(*inputs._replace(config=config), start_step=0)._logical_plan)
    assert plan.dag.name == "MapBatches(_views)->StreamingRepartition[num_rows_per_block=2,strict=True]"


def test_a_stream_is_made_where_no_cpu_is_free(cluster, inputs):
    """Ray Train's controller makes the stream after the workers have taken all CPUs, so it must not wait for one."""
    everything = placement_group([{"CPU": ray.cluster_resources()["CPU"]}])
    try:
        assert everything.wait(30)
        made = threading.Thread(target=training_stream, args=(*inputs, 0), daemon=True)
        made.start()
        made.join(20)
        assert not made.is_alive()
    finally:
        remove_placement_group(everything)


CANCELLED_IN_AN_IMPORT = """
import sys

class Cancelled:
    def find_spec(self, name, path=None, target=None):
        if name == "torch.nn":
            sys.meta_path.remove(self)
            raise KeyboardInterrupt

sys.meta_path.insert(0, Cancelled())
try:
    import torch
except KeyboardInterrupt:
    pass
from tips_ray.data.pipeline import leave_half_imported
leave_half_imported()
print("went on")
"""


def test_a_process_whose_import_of_torch_was_cancelled_ends_and_takes_no_task():
    cancelled = subprocess.run([sys.executable, "-c", CANCELLED_IN_AN_IMPORT], capture_output=True, text=True)
    assert (cancelled.returncode, cancelled.stdout, cancelled.stderr) == (1, "", "")


@pytest.mark.parametrize("kind", ["split", "shared"])
@pytest.mark.parametrize(
    ("workers", "start_step"),
    [
        pytest.param(1, 0, marks=pytest.mark.variant),
        pytest.param(4, 0, marks=pytest.mark.variant),
        (2, 7),
    ],
)
def test_each_step_holds_exactly_its_global_batch(cluster, inputs, expected, workers, start_step, kind):
    stream = (
        _shared(inputs, start_step) if kind == "shared" else _delayed(training_stream(*inputs, start_step=start_step))
    )
    rows = inputs.config.images_per_pass
    batches = _consumed(stream, workers, rows, random.Random(workers))
    passes = inputs.config.global_batch_images // workers // rows
    assert [len(own) for own in batches] == [(STEPS - start_step) * passes] * workers
    for step in range(start_step, STEPS):
        first = (step - start_step) * passes
        parts = [batch for own in batches for batch in own[first : first + passes]]
        union = {name: np.concatenate([part[name] for part in parts]) for name in TRAINING_DTYPES}
        in_order, there = np.argsort(union["position"]), slice(step * 8, step * 8 + 8)
        for name, column in union.items():
            np.testing.assert_array_equal(column[in_order], expected[name][there], err_msg=f"{name} of step {step}")


def test_the_run_that_is_streamed_has_epochs_sources_and_bad_rows(inputs, expected):
    first_source = expected["sample_id"] < 40
    assert len(expected["position"]) == 104 and first_source.sum() > 40  # a second epoch
    assert set(expected["sample_id"][first_source]) == set(range(40)) and (~first_source).sum() in range(30, 39)
    reasons = {reject.partition(":")[0] for reject in expected["reject"][~expected["valid"]]}
    assert reasons == {"not an image", "no caption"}


def test_a_stream_of_nothing_left_is_empty(cluster, inputs):
    assert training_stream(*inputs, start_step=STEPS).take_all() == []
    assert list(WorkerStream(_shared(inputs, STEPS), [], 2, 0).iter_batches(inputs.config.images_per_pass)) == []
