"""The stream of a rank without Ray: on any number of ranks the micro-batches that Ray Data deals, in its order."""

import multiprocessing
import os
import subprocess
import sys
from itertools import takewhile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from toy_run import ToyStream, toy_stream

from tips_ray.config import override
from tips_ray.data import pipeline
from tips_ray.data.captions.join import place_of
from tips_ray.data.captions.store import CaptionStore, ChunkCaptions, image_sha256
from tips_ray.data.columns import TRAINING_DTYPES
from tips_ray.data.index import Index, run_order
from tips_ray.data.index_folder import opened_index
from tips_ray.data.local_stream import StreamError, _sentence, _Views, local_stream
from tips_ray.data.stream import CaptionAccess, order_of, views

STEPS, BATCH = 13, 8
"""104 rows of which an epoch of the first source has 40."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> ToyStream:
    return toy_stream(tmp_path_factory.mktemp("stream"), STEPS)


def _blocks_of_ray(inputs: ToyStream, start_step: int) -> list[list[dict]]:
    """Output of Ray Data's read task for all windows, cut to blocks of m rows as `repartition` does."""
    config, m = inputs.config, inputs.config.images_per_pass
    start, stop = start_step * BATCH, config.schedule.total_steps * BATCH
    windows = {"window": np.array(order_of(inputs.config, inputs.index_uri).windows(start, stop))}
    table = pa.concat_tables(pipeline._read_windows(windows, config, inputs.index_uri, None, start, stop))
    return [table.slice(first, m).to_pylist() for first in range(0, len(table), m)]


@pytest.mark.parametrize("start_step", [0, 7])
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ranks_take_turns_at_the_blocks_of_ray_data(inputs, ranks, start_step):
    dealt = [list(inputs.own_rows(start_step, rank, ranks)) for rank in range(ranks)]
    blocks = _blocks_of_ray(inputs, start_step)
    assert len(blocks) == (STEPS - start_step) * 4
    for number, block in enumerate(blocks):
        found = dealt[number % ranks][number // ranks]
        assert found == block


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_the_ranks_together_hold_each_global_batch_once_over_two_epochs(inputs, ranks):
    dealt = [list(inputs.own_rows(0, rank, ranks)) for rank in range(ranks)]
    order = run_order(opened_index(inputs.index_uri), inputs.config.data, inputs.config.seed, BATCH)
    passes = BATCH // ranks // 2
    for step in range(STEPS):
        rows = [row for own in dealt for block in own[step * passes : (step + 1) * passes] for row in block]
        assert {row["step"] for row in rows} == {step}
        found = sorted((row["position"], row["sample_id"], row["sample_key"]) for row in rows)
        batch = order.batch(step)
        names = (batch.position_N, batch.sample_id_N, batch.sample_key_N)
        assert found == list(zip(*(column.tolist() for column in names), strict=True))


@pytest.mark.heavy
def test_data_processes_give_the_columns_of_their_rows_in_order(inputs):
    expected = [views(rows, inputs.config, inputs.tokenizer_uri) for rows in inputs.own_rows(4, 1, 2)]
    found = list(local_stream(*inputs, start_step=4, rank=1, ranks=2, processes=2))
    assert len(found) == len(expected) == (STEPS - 4) * 2
    for columns, its in zip(found, expected, strict=True):
        for name in TRAINING_DTYPES:
            assert columns[name].dtype.kind == its[name].dtype.kind
            np.testing.assert_array_equal(columns[name], its[name])


def test_a_chunk_is_read_once_per_window(inputs, monkeypatch):
    read, order = [], order_of(inputs.config, inputs.index_uri)
    monkeypatch.setattr(Index, "read", lambda self, number, own=Index.read: read.append(number) or own(self, number))
    assert len(list(inputs.own_rows(0, 0, 1))) == STEPS * 4
    windows = order.windows(0, STEPS * BATCH)
    used = [chunk for window in windows for chunk in set(_chunks(order, window))]
    assert sorted(read) == sorted(used)


def _chunks(order, window: int) -> list[int]:
    return order.window_rows(window).between(0, STEPS * BATCH).chunk_N.tolist()


def test_no_more_than_two_windows_are_read_before_they_are_wanted(inputs, monkeypatch):
    read = []
    monkeypatch.setattr(Index, "read", lambda self, number, own=Index.read: read.append(number) or own(self, number))
    rows = inputs.own_rows(0, 0, 1)
    next(rows)
    rows.close()
    assert 0 < len(read) <= 2 * inputs.config.data.window_chunks


def test_a_stream_of_nothing_left_is_empty(inputs):
    assert list(inputs.own_rows(STEPS, 0, 1)) == []


def test_captions_of_the_store_take_the_place_of_those_of_the_data(inputs, tmp_path):
    index, store = opened_index(inputs.index_uri), CaptionStore(str(tmp_path / "store"), "0123456789abcdef")
    for chunk in range(len(index.chunks.rows)):
        rows, (shard, number) = index.read(chunk), place_of(index, chunk)
        texts = [[f"caption of {row['sample_id']}"] for row in rows]
        made = ChunkCaptions(
            index.chunk(chunk).row, image_sha256(row["image"] for row in rows), texts, [""] * len(rows)
        )
        store.write(shard, number, made)
    found = inputs._replace(captions=CaptionAccess(store)).own_rows(0, 0, 1)
    rows = [row for block in found for row in block]
    assert [row["synthetic_captions"] for row in rows] == [[f"caption of {row['sample_id']}"] for row in rows]


@pytest.mark.heavy
def test_captions_that_nobody_made_end_the_stream_with_a_sentence(inputs, tmp_path):
    empty = CaptionAccess(CaptionStore(str(tmp_path / "store"), "0123456789abcdef"))
    with pytest.raises(StreamError, match=r"chunks have no captions in .*: run tips-ray caption first"):
        list(local_stream(*inputs._replace(captions=empty), start_step=0, rank=0, ranks=1, processes=1))


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # those in the dead process's queue
def test_a_data_process_that_dies_ends_the_stream_with_a_sentence(inputs):
    keys = {"schedule.total_steps": 10_000, "data_prefetch_batches": 1}
    endless = inputs._replace(config=override(type(inputs.config), inputs.config.model_dump(), keys))
    before = set(multiprocessing.active_children())  # ranks of other tests
    stream = local_stream(*endless, start_step=0, rank=0, ranks=1, processes=1)
    next(stream)
    (process,) = set(multiprocessing.active_children()) - before
    process.kill()
    with pytest.raises(StreamError, match=r"^a data process was killed or crashed \(.*\); if it printed"):
        list(stream)


def test_numbers_are_in_shared_memory_before_the_loader_passes_them(inputs):
    columns = _Views(inputs.config, inputs.tokenizer_uri)[next(inputs.own_rows(0, 0, 1))]
    for name, dtype in TRAINING_DTYPES.items():
        assert isinstance(columns[name], np.ndarray) if dtype is np.str_ else columns[name].is_shared()


def test_shared_memory_that_is_full_is_named():
    in_process = "Traceback ...\nRuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_0>: "
    told = _sentence(RuntimeError(f"{in_process}No space left on device (28)"), 0)
    assert told.startswith(
        "shared memory (/dev/shm), in which data processes pass batches, is full: give the container"
    )


FULL = """
import shutil, sys
from pathlib import Path
from toy_run import toy_stream
from tips_ray.data.local_stream import StreamError, local_stream
def main():
    stream = local_stream(*toy_stream(Path(sys.argv[1]), 10_000), start_step=0, rank=0, ranks=1, processes=1)
    next(stream)
    if len(sys.argv) == 2:
        return stream
    assert shutil.disk_usage("/dev/shm").total == 4 << 20, "this is not the mount of the test"
    try:
        Path("/dev/shm/other").write_bytes(bytes(4 << 20))
    except OSError:
        pass
    try:
        list(stream)
    except StreamError as error:
        print(error, flush=True)
        return error
if __name__ == "__main__":
    kept = main()
    print("leaves", flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("is_full", [False, True])
def test_a_rank_exits_at_once_also_after_shared_memory_was_full(tmp_path, is_full):
    (tmp_path / "full.py").write_text(FULL)
    command = [sys.executable, str(tmp_path / "full.py"), str(tmp_path / "data"), *["full"] * is_full]
    private = "mount --make-rprivate / && mount -t tmpfs -o size=4m tmpfs /dev/shm"
    if is_full:
        if subprocess.run(["unshare", "-m", "sh", "-c", private], capture_output=True).returncode:
            pytest.skip("a private /dev/shm cannot be mounted here")
        command = ["unshare", "-m", "sh", "-c", f'{private} && exec "$@"', "sh", *command]
    tests = Path(__file__).parents[1]
    paths = os.pathsep.join([str(tests.parent), str(tests)])
    environment = {**os.environ, "PYTHONPATH": paths}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        told = list(takewhile(lambda line: line != "leaves\n", process.stdout))
        assert process.wait(timeout=60) == 0
    assert "".join(told).startswith("shared memory (/dev/shm), in" if is_full else "")
