"""Readers of a shared stream: what they read, hold and hand out; at the end on Ray, with readers that are killed."""

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray
from nodes import nodes_of_cluster
from toy_run import ToyStream, toy_stream

from tips_ray.data import shared_stream
from tips_ray.data import stream as stream_module
from tips_ray.data.captions.coordinator import CaptionCoordinator
from tips_ray.data.captions.join import place_of
from tips_ray.data.captions.store import CaptionStore, ChunkCaptions, image_sha256
from tips_ray.data.index import Index
from tips_ray.data.index_folder import opened_index
from tips_ray.data.shared_stream import READER_BYTES, SharedStream, WindowReader
from tips_ray.data.stream import CaptionAccess, order_of
from tips_ray.ray_data_adapter import InOrder

STEPS = 13
"""104 rows in windows of 12."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> ToyStream:
    return toy_stream(tmp_path_factory.mktemp("stream"), STEPS)


@pytest.fixture
def read(monkeypatch) -> Counter[int]:
    """How often each chunk was read."""
    counts, before = Counter[int](), Index.read

    def counted(self: Index, number: int) -> Any:
        counts[number] += 1
        return before(self, number)

    monkeypatch.setattr(Index, "read", counted)
    return counts


def _stream(inputs: ToyStream, start_step: int = 0, workers: int = 24, **values: Any) -> SharedStream:
    """A stream with a reader for every eight workers."""
    resources = inputs.config.resources.model_copy(update={"workers": workers, "stream": "shared"})
    config = inputs.config.model_copy(update={"resources": resources, **values})
    return SharedStream(config, inputs.index_uri, inputs.tokenizer_uri, None, start_step)


def _parts(reader: WindowReader, stream: SharedStream, workers: int, window: int, rank: int) -> list[list[dict]]:
    """A worker's rows of a window, as a list for each micro-batch also where there is one."""
    order, deal = order_of(stream.config, stream.index_uri), stream.deal(workers)
    numbers = deal.micro_batches(rank, order.window_start(window), order.window_start(window + 1))
    parts = asyncio.run(reader.part(window, rank)) if numbers else []
    return [parts] if len(numbers) == 1 else parts


def _reads_of_order(stream: SharedStream) -> Counter[int]:
    """How often a stream that reads no chunk of a window twice reads each chunk."""
    order = order_of(stream.config, stream.index_uri)
    deal = stream.deal(1)
    windows = [order.window_rows(window) for window in order.windows(deal.start, deal.stop)]
    return Counter(
        np.concatenate([np.unique(rows.between(deal.start, deal.stop).chunk_N) for rows in windows]).tolist()
    )


@pytest.mark.parametrize("workers", [1, 4, 16, 64])
def test_any_number_of_workers_gets_every_row_once_and_each_window_is_read_once(inputs, read, workers):
    stream = _stream(inputs, start_step=2)
    order, deal = order_of(stream.config, stream.index_uri), stream.deal(workers)
    reader, got = WindowReader(stream, workers, held=1), []
    for window in order.windows(deal.start, deal.stop):
        for rank in range(workers):
            for part in _parts(reader, stream, workers, window, rank):
                assert {(row["position"] - deal.start) // deal.rows % workers for row in part} == {rank}
                got += [row["position"] for row in part]
    assert sorted(got) == list(range(deal.start, deal.stop))
    assert read == _reads_of_order(stream) and not reader._windows


def test_a_window_that_was_dropped_is_read_again_and_gives_the_same_rows(inputs, read):
    stream = _stream(inputs)
    reader, alone = WindowReader(stream, 2, held=1), WindowReader(stream, 2, held=1)
    first = _parts(reader, stream, 2, 0, 0)
    _parts(reader, stream, 2, 1, 0)  # window 0 goes, though worker 1 has not asked
    assert list(reader._windows) == [1]
    assert _parts(reader, stream, 2, 0, 1) == _parts(alone, stream, 2, 0, 1)
    assert _parts(alone, stream, 2, 0, 0) == first and list(reader._windows) == [1]
    of_window = set(order_of(stream.config, stream.index_uri).window_rows(0).chunk_N.tolist())
    assert {read[chunk] for chunk in of_window} == {3}  # twice by one reader, once by the other


def test_workers_that_ask_at_once_share_one_read(inputs, read):
    stream = _stream(inputs)
    reader = WindowReader(stream, 4, held=2)

    async def all_of_them() -> None:
        await asyncio.gather(*(reader.part(0, rank) for rank in range(4)))

    asyncio.run(all_of_them())
    assert set(read.values()) == {1}


def test_bounds_by_hand(inputs):
    """60 rows in 15 chunks, windows of 3 chunks; three readers."""
    stream = _stream(inputs)
    bounds = stream.bounds(4, prefetch_batches=3)
    assert bounds.micro_batches == 4  # 3 that are ready, and ceil(1 data CPU / 4 workers)
    assert bounds.windows == 4
    # 4 x 4 workers x 2 rows in the making and a step of 8 lie in 4 windows of 12 rows; (4 + 4 + 1) / 3 readers
    assert bounds.held == 3
    row_bytes = sum(opened_index(stream.index_uri).shards["bytes"].to_pylist()) / 60
    assert bounds.reader_bytes == READER_BYTES + 3 * int(12 * row_bytes)


def test_readers_start_on_all_nodes_in_turn_as_far_as_their_memory_goes(inputs, monkeypatch):
    sizes = {"a": 25, "b": 9, "c": 12, "gpu": 99}
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 4, "memory": size}} for name, size in sizes.items()]
    nodes[-1]["Resources"].pop("CPU")
    monkeypatch.setattr(shared_stream.ray, "nodes", lambda: nodes)
    config = _stream(inputs).config
    assert shared_stream._homes(config, 10) == ["a", "c", "a"]
    assert shared_stream._homes(config, 4) == ["a", "b", "c"]
    with pytest.raises(ValueError, match="needs 11 B .*, as do 3 others, and .* at most 25 B, room for 3 in all"):
        shared_stream._homes(_stream(inputs, workers=32).config, 11)


def test_bytes_of_a_window_follow_the_weights_of_its_sources(inputs, monkeypatch):
    """1,000 rows of 1 kB and ten of 2 MB, with weights of 3 to 1: a row has (3 x 1 kB + 2 MB) / 4."""
    shards = pa.table({"source": pa.array([0, 1], pa.int16()), "bytes": [10**6, 2 * 10**7]})
    sources = [SimpleNamespace(rows=1000), SimpleNamespace(rows=10)]
    index = SimpleNamespace(shards=shards, sources=sources, chunks=SimpleNamespace(rows=np.array([10, 10])))
    monkeypatch.setattr(stream_module, "opened_index", lambda uri: index)
    data = SimpleNamespace(sources=[SimpleNamespace(weight=3), SimpleNamespace(weight=1)], window_chunks=2)
    config: Any = SimpleNamespace(data=data)
    assert stream_module.window_bytes(config, "") == 20 * 500_750


@pytest.mark.ray
def test_a_reader_that_no_node_has_the_memory_for_is_told(cluster, inputs, monkeypatch):
    monkeypatch.setattr(shared_stream, "READER_BYTES", 900 * 10**12)
    with pytest.raises(ValueError, match=r"needs 900 TB of memory, as do 2 others, and nodes offer at most .*: give"):
        InOrder().configure({"train": _stream(inputs)}, 2, None, None)


@pytest.mark.ray
def test_a_reader_that_is_killed_starts_again_and_workers_get_the_same_rows(cluster, inputs):
    """Whatever a worker had not got, Ray asks for again, and the new reader reads those windows again."""
    stream = _stream(inputs, workers=2, data_prefetch_batches=1)
    splits = [split["train"] for split in InOrder().configure({"train": stream}, 2, None, None)]
    streams, found = [split.iter_batches(2, 1) for split in splits], []
    for number in range(STEPS * 2):
        if number == 5:
            (reader,) = splits[0].readers
            ray.kill(reader, no_restart=False)
        found += [next(batches)["position"].tolist() for batches in streams]
    assert found == [[2 * number, 2 * number + 1] for number in range(STEPS * 4)]
    assert [next(batches, None) for batches in streams] == [None, None]


@pytest.mark.ray
@pytest.mark.slow
def test_a_stream_goes_on_when_the_node_of_its_reader_and_its_views_is_lost(inputs, monkeypatch):
    """Rows and views that were there are lost with the node: Ray makes them again."""
    with nodes_of_cluster(monkeypatch) as nodes:
        first = nodes.add(2)
        ray.init()
        stream = _stream(inputs, workers=2, data_prefetch_batches=6)
        splits = [split["train"] for split in InOrder().configure({"train": stream}, 2, None, None)]
        streams, found = [split.iter_batches(2, 6) for split in splits], []
        for number in range(STEPS * 2):
            if number == 5:
                nodes.add(2)
                nodes.kill(first)
            found += [next(batches)["position"].tolist() for batches in streams]
    assert found == [[2 * number, 2 * number + 1] for number in range(STEPS * 4)]


@pytest.mark.ray
def test_rows_wait_for_captions_without_a_cpu_and_an_end_of_captioning_reaches_the_worker(cluster, inputs, tmp_path):
    actor: Any = ray.remote(num_cpus=0)(CaptionCoordinator)
    coordinator, store = actor.remote(lead_windows=1), CaptionStore(str(tmp_path / "captions"), "0123456789abcdef")
    stream = replace(_stream(inputs, workers=2, data_prefetch_batches=1), captions=CaptionAccess(store, coordinator))
    splits = InOrder().configure({"train": stream}, 1, None, None)
    batches = splits[0]["train"].iter_batches(2, 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(next, batches)
        with pytest.raises(TimeoutError):
            first.result(timeout=2)
        assert ray.available_resources()["CPU"] == ray.cluster_resources()["CPU"]
        _write_captions(stream, store, window=0)
        columns = first.result(timeout=60)
    assert columns["position"].tolist() == [0, 1] and columns["synthetic_ids"].any()
    ray.get(coordinator.end.remote("the captioner broke"))
    with pytest.raises(ValueError, match="none will come: the captioner broke"):
        list(batches)


def _write_captions(stream: SharedStream, store: CaptionStore, window: int) -> None:
    index = opened_index(stream.index_uri)
    for chunk in np.unique(order_of(stream.config, stream.index_uri).window_rows(window).chunk_N).tolist():
        rows = index.read(chunk)
        hashes = image_sha256(row["image"] for row in rows)
        texts = [["a red sphere"] for _ in rows]
        store.write(*place_of(index, chunk), ChunkCaptions(index.chunk(chunk).row, hashes, texts, [""] * len(rows)))
