import threading
import time

import pytest
from toy_caption_store import FINGERPRINT, captions, kill_when, shard

from tips_ray import storage
from tips_ray.data.captions import store
from tips_ray.data.captions.maintenance import compact
from tips_ray.data.captions.store import CaptionStore, DamagedError

GROUP = 8
COMPACT = """
import sys
from toy_caption_store import FINGERPRINT, shard
from tips_ray.data.captions import store
store.GROUP_CHUNKS = 8
from tips_ray.data.captions.maintenance import compact
compact(store.CaptionStore(sys.argv[1], FINGERPRINT), shard().name)
"""


@pytest.fixture(autouse=True)
def small_groups(monkeypatch):
    monkeypatch.setattr(store, "GROUP_CHUNKS", GROUP)


def _filled(folder: str, chunks: int, without: tuple[int, ...] = ()) -> CaptionStore:
    filled = CaptionStore(folder, FINGERPRINT)
    for chunk in range(chunks):
        if chunk not in without:
            filled.write(shard(0, chunks), chunk, captions(chunk))
    return filled


def _assert_whole(filled: CaptionStore, chunks: int) -> None:
    assert filled.present(shard(0, chunks)) == set(range(chunks))
    assert [filled.read(shard(0, chunks), chunk) for chunk in range(chunks)] == [*map(captions, range(chunks))]
    assert [(number, found) for _, number, found in filled.chunks(shard().name)] == [
        *enumerate(map(captions, range(chunks)))
    ]


@pytest.mark.heavy
def test_complete_groups_become_one_object_and_incomplete_ones_stay(folder):
    chunks = GROUP + 3
    filled = _filled(folder, chunks, without=(1,))
    assert compact(filled, shard().name) == (1, 3)
    spans = [*((chunk, chunk + 1) for chunk in range(8) if chunk != 1), (8, 11)]
    assert sorted(store.covered(filled.names(shard().name))) == spans
    assert filled.write(shard(0, chunks), 1, captions(1))
    assert not any(filled.write(shard(0, chunks), chunk, captions(chunk, "late")) for chunk in range(chunks))
    assert compact(filled, shard().name) == (1, GROUP)
    assert compact(filled, shard().name) == (0, 0)
    _assert_whole(filled, chunks)


def test_a_shard_of_one_chunk_and_one_without_captions_have_nothing_to_compact(tmp_path):
    filled = _filled(str(tmp_path), 1)
    assert compact(filled, shard().name) == compact(filled, shard(1).name) == (0, 0)
    _assert_whole(filled, 1)


@pytest.mark.heavy
@pytest.mark.parametrize("folder", ["s3", pytest.param("local", marks=pytest.mark.variant)], indirect=True)
def test_readers_find_every_chunk_while_writers_and_two_compactions_go_on(folder):
    chunks = 2 * GROUP
    filled, place = CaptionStore(folder, FINGERPRINT), shard(0, chunks)
    written, lost, done = [], [], threading.Event()

    def read() -> None:
        while not done.is_set():
            for chunk in list(written):
                if filled.read(place, chunk) != captions(chunk):
                    lost.append(chunk)
            before = set(written)
            lost.extend(before - filled.present(place))

    def merge() -> None:
        while not done.is_set():
            compact(filled, place.name)

    threads = [threading.Thread(target=action) for action in (read, merge, merge)]
    for thread in threads:
        thread.start()
    for chunk in range(chunks):
        filled.write(place, chunk, captions(chunk))
        written.append(chunk)
    time.sleep(0.5)
    done.set()
    for thread in threads:
        thread.join()
    compact(filled, place.name)
    assert lost == []
    assert len(filled.names(place.name)) == chunks // GROUP
    _assert_whole(filled, chunks)


def test_a_chunk_written_again_while_its_group_is_made_is_not_there_twice(tmp_path, monkeypatch):
    filled, create = _filled(str(tmp_path), GROUP), storage.create_bytes

    def create_late(uri: str, content: bytes) -> bool:
        monkeypatch.undo()
        monkeypatch.setattr(store, "GROUP_CHUNKS", GROUP)
        compact(filled, shard().name)
        return create(uri, content)

    monkeypatch.setattr(storage, "create_bytes", create_late)
    assert not filled.write(shard(0, GROUP), 3, captions(3, "late"))
    assert len(filled.names(shard().name)) == 1
    _assert_whole(filled, GROUP)


@pytest.mark.parametrize("moved_in", ["read_bytes", "list_names"])
def test_a_reader_finds_what_compaction_moves_between_two_of_its_looks(tmp_path, monkeypatch, moved_in):
    filled, look = _filled(str(tmp_path), GROUP), getattr(storage, moved_in)

    def look_during_compaction(uri: str, *arguments):
        """A look that misses the group, which is not there yet, and the single chunks, which are already deleted."""
        if moved_in == "read_bytes" and uri.endswith("00000000-00000008.parquet"):
            return look(uri)
        monkeypatch.setattr(storage, moved_in, look)
        compact(filled, shard().name)
        return [] if moved_in == "list_names" else look(uri)

    monkeypatch.setattr(storage, moved_in, look_during_compaction)
    if moved_in == "list_names":
        assert filled.present(shard(0, GROUP)) == set(range(GROUP))
    else:
        assert filled.read(shard(0, GROUP), 3) == captions(3)


@pytest.mark.heavy
def test_compaction_killed_at_any_moment_is_finished_by_the_next(tmp_path):
    chunks = left = 5 * GROUP
    filled = _filled(str(tmp_path), chunks)
    for fewer in (1, 4, 13):
        kill_when(["-c", COMPACT, str(tmp_path)], lambda n=left - fewer: len(filled.names(shard().name)) <= n)
        left = len(filled.names(shard().name))
        _assert_whole(filled, chunks)
    assert 5 < left < chunks
    compact(filled, shard().name)
    assert len(filled.names(shard().name)) == 5
    _assert_whole(filled, chunks)


def test_nothing_is_deleted_for_a_damaged_group(tmp_path):
    filled = _filled(str(tmp_path / "damaged"), GROUP)
    whole = _filled(str(tmp_path / "whole"), GROUP)
    compact(whole, shard().name)
    content = bytearray(storage.read_bytes(whole.uri(shard().name, 0, GROUP)))
    content[100:300] = bytes(200)  # the head at the end of the file stays as it is
    for bad, reason in ((bytes(content), "chunk 0 cannot be decoded"), (b"not a group", "it is no caption object")):
        storage.write_bytes(filled.uri(shard().name, 0, GROUP), bad)
        with pytest.raises(DamagedError, match=f"00000000-00000008.parquet: {reason}"):
            compact(filled, shard().name)
        assert len(filled.names(shard().name)) == GROUP + 1
