"""A checkpoint is read in blocks: each rank fetches and verifies those with its shards, and no others."""

import hashlib
import io
import json
from pathlib import Path

import pytest
import torch
from ranks import run_on_ranks
from toy_state import assert_equal, toy_state, trained

from tips_ray import storage
from tips_ray.checkpoint_io import fill_tree
from tips_ray.runs import checkpoint_blocks
from tips_ray.runs.checkpoint import CheckpointInfo, DamagedCheckpointError, newest_checkpoint
from tips_ray.runs.checkpoint_blocks import BlockFile, DamagedBlockError, file_entry
from tips_ray.train.checkpointing import checkpoint_parts, load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(checkpoint_blocks, "BLOCK_BYTES", 1024)


@pytest.fixture
def read(monkeypatch) -> list[int]:
    """Number of bytes of each part of a file that was read."""
    return _counted(monkeypatch)


def _counted(monkeypatch) -> list[int]:
    found, read_bytes = [], storage.read_bytes

    def counted(uri: str, start: int = 0, stop: int | None = None) -> bytes:
        content = read_bytes(uri, start, stop)
        found.extend([len(content)] if uri.endswith(".distcp") else [])
        return content

    monkeypatch.setattr(storage, "read_bytes", counted)
    return found


def _file(tmp_path: Path, size: int) -> tuple[Path, bytes]:
    path, content = tmp_path / "__0_0.distcp", bytes(torch.randint(256, (size,), dtype=torch.uint8).tolist())
    path.write_bytes(content)
    return path, content


def test_an_entry_has_the_sha256_of_the_file_and_of_each_block(tmp_path):
    path, content = _file(tmp_path, 2500)
    blocks = [hashlib.sha256(content[start : start + 1024]).hexdigest() for start in (0, 1024, 2048)]
    whole = hashlib.sha256(content).hexdigest()
    assert file_entry(path) == {"bytes": 2500, "sha256": whole, "block_bytes": 1024, "blocks": blocks}


def test_bytes_are_those_of_the_file_wherever_one_seeks(tmp_path):
    path, content = _file(tmp_path, 100_000)
    with BlockFile(str(path), file_entry(path), [(0, 100_000)]) as file:
        for start, length in ((90_000, 20_000), (0, 5), (1020, 8), (5000, 60_000), (100_000, 1)):
            file.seek(start)
            assert file.read(length) == content[start : start + length] and file.tell() <= 100_000
        assert file.seek(-3, io.SEEK_END) == 99_997 and file.read(9) == content[-3:]


def test_only_blocks_of_the_spans_are_fetched_and_only_fetched_ones_are_judged(tmp_path, read):
    path, content = _file(tmp_path, 100_000)
    entry = file_entry(path)
    path.write_bytes(content[:50_000] + bytes([content[50_000] ^ 1]) + content[50_001:])
    with BlockFile(str(path), entry, [(2000, 100), (9000, 2000)]) as file:
        file.seek(9000)
        assert file.read(2000) == content[9000:11_000]
        file.seek(2000)
        assert file.read(100) == content[2000:2100]
        assert sorted(read) == [1024] * 5  # blocks 1 and 2; 8, 9 and 10
        file.seek(50_000)
        with pytest.raises(DamagedBlockError, match="sha256 of __0_0.distcp .* at byte 49152"):
            file.read(1)
    path.write_bytes(content + b"1")
    with pytest.raises(DamagedBlockError, match="has 100001 bytes instead of 100000"):
        BlockFile(str(path), entry, [])


def test_a_part_of_a_checkpoint_is_read_without_the_rest(tmp_path, read):
    saved = save_checkpoint(source := trained(toy_state(), 1), str(tmp_path), {})
    tree = {"centers": checkpoint_parts(toy_state())[0]["centers"]}
    fill_tree(tree, saved)
    assert torch.equal(tree["centers"]["distillation_K"], source.centers.distillation_K)
    whole = sum(entry["bytes"] for name, entry in saved.manifest["files"].items() if name != ".metadata")
    assert 0 < sum(read) < 0.05 * whole


def test_a_checkpoint_of_an_earlier_version_has_no_blocks_and_is_read(tmp_path, read):
    saved = save_checkpoint(source := trained(toy_state(), 1), str(tmp_path), {})
    files = {n: {"bytes": e["bytes"], "sha256": e["sha256"]} for n, e in saved.manifest["files"].items()}
    Path(saved.uri, "manifest.json").write_text(json.dumps({**saved.manifest, "files": files}))
    old = newest_checkpoint(str(tmp_path))
    assert old and old.manifest["files"] == files
    load_checkpoint(state := toy_state(), old)
    assert_equal(state, source)
    assert read == []  # whole files are copied


@pytest.mark.heavy
def test_each_rank_reads_its_own_part(tmp_path):
    """And all are told of a block that is not the manifest's, whoever reads it."""
    parts = run_on_ranks(2, _read_of_rank, str(tmp_path))
    whole = parts[0][1]
    assert (
        all(0.3 * whole < read < 0.75 * whole for read, _, _ in parts) and sum(read for read, *_ in parts) < 1.3 * whole
    )
    assert all("sha256 of __1_0.distcp differs" in words for *_, words in parts)


def _read_of_rank(folder: str) -> tuple[int, int, str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_blocks, "BLOCK_BYTES", 1024)
        patch.setattr(checkpoint_blocks, "MOST_HELD", 1000)  # as real blocks hold a whole part of a tensor
        saved = save_checkpoint(source := trained(toy_state(), 1), folder, {})
        read = _counted(patch)
        load_checkpoint(state := toy_state(), saved)
    assert_equal(state, source)
    read_bytes = sum(read)  # the next load reads more, as much as it has begun when another rank finds the damage
    files = dict(saved.manifest["files"])
    files["__1_0.distcp"] = {**files["__1_0.distcp"], "blocks": ["0" * 64] * len(files["__1_0.distcp"]["blocks"])}
    with pytest.raises(DamagedCheckpointError) as error:
        load_checkpoint(state, CheckpointInfo(saved.uri, saved.step, {**saved.manifest, "files": files}))
    return read_bytes, sum(e["bytes"] for n, e in files.items() if n != ".metadata"), str(error.value)
