from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import toy_caption_store
from toy_caption_store import FINGERPRINT, captions, shard

from tips_ray import storage
from tips_ray.data.captions.store import CaptionStore, DamagedError, captioners


@pytest.fixture
def store(folder):
    return CaptionStore(folder, FINGERPRINT)


def test_captions_come_back_as_they_were_written_and_absent_ones_are_none(store):
    assert store.write(shard(), 1, captions(1))
    assert store.read(shard(), 1) == captions(1)
    assert store.read(shard(), 0) is None
    assert store.read_many([(shard(), 1), (shard(1), 1), (shard(), 2)]) == [captions(1), None, None]


def test_missing_chunks_are_listed_per_shard_in_order(store):
    for number, chunk in ((0, 1), (2, 0), (2, 1), (2, 2)):
        store.write(shard(number), chunk, captions(chunk))
    assert list(store.missing([shard(0), shard(1), shard(2)])) == [[0, 2], [0, 1, 2], []]


@pytest.mark.heavy
def test_of_concurrent_writers_of_the_same_chunks_one_wins_each(store):
    def write(writer: str) -> list[bool]:
        return [store.write(shard(0, 5), chunk, captions(chunk, writer)) for chunk in range(5)]

    with ThreadPoolExecutor(4) as pool:
        won = dict(zip("abcd", pool.map(write, "abcd"), strict=True))
    for chunk in range(5):
        winners = [writer for writer in "abcd" if won[writer][chunk]]
        # Swift checks first and writes then: two writers may both be told that they won; it keeps the later object.
        assert len(winners) == 1 or (winners and not storage.is_local(store.folder))
        assert store.read(shard(0, 5), chunk) in [captions(chunk, winner) for winner in winners]
    assert len(store.names(shard().name)) == 5


def test_a_shard_keeps_its_name_in_another_index_and_loses_it_with_its_content():
    assert shard(0, chunks=3).name == shard(0, chunks=4).name  # chunks follow from the content
    changed = [replace(shard(), etag="f"), replace(shard(), chunk_rows=8), replace(shard(), path="/data/b.tar")]
    changed += [replace(shard(), image_column="png"), replace(shard(), bytes=7), replace(shard(), format="parquet")]
    assert len({shard().name, *(other.name for other in changed)}) == 7


def test_captioners_share_a_store_and_keep_their_first_description(folder):
    for fingerprint, model in (("a" * 64, "one"), ("b" * 64, "two"), ("a" * 64, "three")):
        CaptionStore(folder, fingerprint).describe({"model": model})
    assert [store.description()["model"] for store in captioners(folder)] == ["one", "two"]
    assert CaptionStore(folder, "c" * 64).description() == {}


@pytest.mark.heavy
def test_damaged_and_misplaced_objects_are_named_with_their_cure(store):
    store.write(shard(), 0, captions(0))
    good = storage.read_bytes(store.uri(shard().name, 0, 1))
    torn, told = "it is no caption object", "its content belongs to .*00000000-00000001.parquet"
    for chunk, content, reason in ((1, good[:-20], torn), (2, good, told), (1, b"", torn)):
        uri = store.uri(shard().name, chunk, chunk + 1)
        storage.write_bytes(uri, content)
        with pytest.raises(DamagedError, match=f"{uri}: {reason}.*; delete it and caption again"):
            store.read(shard(), chunk)


@pytest.mark.heavy
def test_a_writer_killed_at_any_moment_leaves_whole_chunks_and_the_next_one_adds_the_rest(tmp_path):
    chunks, store = 120, CaptionStore(str(tmp_path), FINGERPRINT)
    for at in (1, 7, 40):
        command = [toy_caption_store.__file__, str(tmp_path), f"writer{at}", str(chunks)]
        toy_caption_store.kill_when(command, lambda at=at: len(store.names(shard().name)) >= at)
    before = store.present(shard(0, chunks))
    assert 40 <= len(before) < chunks
    made = [chunk for chunk in range(chunks) if store.write(shard(0, chunks), chunk, captions(chunk, "last"))]
    assert set(made) == set(range(chunks)) - before
    assert len(store.names(shard().name)) == chunks
    texts = [text for _, _, found in store.chunks(shard().name) for row in found.captions for text in row]
    rows = [int(text.split()[-1]) for text in texts]
    assert rows == [row for row in range(4 * chunks) if row % 7 != 5]
