import json
import os

import pyarrow.parquet as pq
import pytest
import yaml
from toy_caption_store import FINGERPRINT
from writers import pair, write_tar

from jobs.cli import main
from tips_ray import storage
from tips_ray.config import RunConfig, load_config
from tips_ray.data.captions.join import place_of
from tips_ray.data.captions.store import CaptionStore, ChunkCaptions, image_sha256
from tips_ray.data.index_folder import index_of
from tips_ray.launch.captions import store_of
from tips_ray.launch.checks import captions_come

ROWS = 10  # in each of two tars; chunks of 4 rows: 4 + 4 + 2
RUN = {"variant": "S", "name": "run", "global_batch_images": 4, "schedule": {"total_steps": 20_000}}


@pytest.fixture
def run(tmp_path):
    for number in range(2):
        rows = range(ROWS * number, ROWS * (number + 1))
        pairs = [pair(f"{row:05d}", 10 * row, f"web {row}") for row in rows]  # neighbours look the same as JPEG
        write_tar(tmp_path / f"data/{number}.tar", [member for members in pairs for member in members])
    data = {"sources": [{"uri": str(tmp_path / "data")}], "chunk_rows": 4}
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({**RUN, "storage": str(tmp_path / "runs"), "data": data}))
    return path


@pytest.fixture
def store(run, tmp_path):
    """Captions of every image of the run; the last one has none."""
    filled = CaptionStore(str(tmp_path / "captions"), FINGERPRINT)
    filled.describe({"config": {"model": "a-captioner"}})
    _caption(run, filled)
    return filled


def _caption(run, store: CaptionStore) -> None:
    index = _index(run)
    for chunk in range(len(index.chunks.rows)):
        rows = index.read(chunk)
        numbers = [int(row["key"]) for row in rows]
        texts = [[f"made of {number}"] if number < 19 else [] for number in numbers]
        errors = ["truncated: at byte 9" if number == 19 else "" for number in numbers]
        sha256 = image_sha256(row["image"] for row in rows)
        store.write(*place_of(index, chunk), ChunkCaptions(index.chunk(chunk).row, sha256, texts, errors))


def _index(run):
    config = load_config(RunConfig, run)
    return index_of(config.data, storage.join(config.storage, "index"))


def _captions(*arguments) -> int:
    return main(["captions", *map(str, arguments)])


def _texts(run, store: CaptionStore) -> list[list[str]]:
    index = _index(run)
    found = [store.read(*place_of(index, chunk)) for chunk in range(len(index.chunks.rows))]
    return [texts for chunk in found if chunk for texts in chunk.captions]


def test_stats_tell_rows_errors_and_the_captioner(store, tmp_path, capsys):
    assert _captions("stats", tmp_path / "captions") == 0
    printed = capsys.readouterr().out
    for part in (
        "model: a-captioner",
        "20 rows in 6 chunks, 6 objects, 2 shards",
        "19 captions of 3.0 words, 0.0% duplicates",
        "1 rows without: truncated\n",
        "e.g. 'made of",
    ):
        assert part in printed


def test_compact_leaves_one_object_per_shard_and_all_captions(run, store, tmp_path, capsys):
    before = _texts(run, store)
    assert _captions("compact", tmp_path / "captions") == 0
    assert "2 groups made of 6 objects, in 2 shards" in capsys.readouterr().out
    assert [len(store.names(name)) for name in store.shard_names()] == [1, 1]
    assert _texts(run, store) == before
    assert _captions("verify", tmp_path / "captions", "--run", run) == 0


def test_verify_names_damaged_misplaced_doubled_and_missing_objects_and_exits_with_one(run, store, tmp_path, capsys):
    assert _captions("verify", tmp_path / "captions", "--run", run) == 0
    assert "all objects are whole and no chunk is missing" in capsys.readouterr().out
    index = _index(run)
    (first, _), (second, _) = place_of(index, 0), place_of(index, 3)
    good = storage.read_bytes(store.uri(first.name, 0, 1))
    storage.write_bytes(store.uri(first.name, 0, 1), good[:-9])
    storage.write_bytes(store.uri(first.name, 1, 2), good)
    storage.write_bytes(storage.join(store.folder, first.name, "notes.txt"), b"")
    storage.delete(store.uri(second.name, 2, 3))
    store.write(second, 2, ChunkCaptions(8, [bytes(32)] * 3, [["a"], ["b"], []], ["", "", "bad"]))
    storage.delete(store.uri(second.name, 0, 1))
    assert _captions("verify", tmp_path / "captions", "--run", run) == 1
    printed = capsys.readouterr().out
    for part in (
        f"{store.uri(first.name, 0, 1)}: it is no caption object",
        f"{store.uri(first.name, 1, 2)}: its content belongs to {store.uri(first.name, 0, 1)}",
        "notes.txt: this is no name of a caption object; delete it",
        f"{store.uri(second.name, 2, 3)}: chunk 2 holds 3 rows from row 8 on; in the index it has 2 from row 8 on",
        f"{second.path}: 1 of 3 chunks have no captions (0); run tips-ray caption",
        "5 faults",
    ):
        assert part in printed


def test_verify_finds_a_chunk_that_a_killed_compaction_left_twice(store, tmp_path, capsys):
    name = store.shard_names()[0]
    single = store.uri(name, 1, 2)
    content = storage.read_bytes(single)
    _captions("compact", tmp_path / "captions")
    storage.write_bytes(single, content)
    assert _captions("verify", tmp_path / "captions") == 1
    assert f"{single}: its chunks are in another object too; run tips-ray captions compact" in capsys.readouterr().out
    _captions("compact", tmp_path / "captions")
    assert _captions("verify", tmp_path / "captions") == 0


@pytest.mark.parametrize("name", ["captions.parquet", "captions.jsonl"])
def test_import_gives_rewritten_shards_the_captions_that_were_exported(run, store, tmp_path, capsys, name):
    before = _texts(run, store)
    assert _captions("export", tmp_path / "captions", tmp_path / name) == 0
    assert "19 rows; 1 rows have no captions and are left out" in capsys.readouterr().out
    for number in range(2):
        with open(tmp_path / f"data/{number}.tar", "ab") as shard:
            shard.write(bytes(10240))  # one record more: other bytes, the same images
    assert _texts(run, store) == []
    assert _captions("import", tmp_path / "captions", tmp_path / name, "--run", run) == 0
    printed = capsys.readouterr().out
    assert "18 rows in 5 chunks, from 19 images" in printed
    assert "1 chunks hold images that the file lacks: tips-ray caption makes them whole" in printed
    assert _texts(run, store) == before[:18]  # the chunk whose last image has no caption is left to the captioner
    assert _captions("import", tmp_path / "captions", tmp_path / name, "--run", run) == 0
    assert "0 rows in 0 chunks" in capsys.readouterr().out


def test_an_export_names_image_shard_and_row(store, tmp_path):
    _captions("export", tmp_path / "captions", tmp_path / "captions.parquet")
    rows = {row["captions"][0]: row for row in pq.read_table(tmp_path / "captions.parquet").to_pylist()}
    row = rows["made of 13"]
    assert (os.path.basename(row["shard"]), row["row"]) == ("1.tar", 3)
    assert len(rows) == 19 and len(row["sha256"]) == 64


def test_captions_of_another_program_come_in_under_a_name_of_their_own(run, store, tmp_path, capsys):
    index, lines = _index(run), ["sha256,captions"]
    for chunk in range(len(index.chunks.rows)):
        for row in index.read(chunk):
            text = '"[""first"", ""second""]"' if row["key"] == "00000" else f"by hand {row['key']}"
            lines.append(f"{image_sha256([row['image']])[0].hex()},{text}")
    (tmp_path / "own.csv").write_text("\n".join(lines))
    arguments = ("import", tmp_path / "captions", tmp_path / "own.csv", "--run", run, "--captioner", "by-hand")
    assert _captions(*arguments) == 0
    assert "20 rows in 6 chunks, from 20 images" in capsys.readouterr().out
    _captions("stats", tmp_path / "captions")
    printed = capsys.readouterr().out
    assert "model: by-hand" in printed and "model: a-captioner" in printed and "21 captions" in printed
    keys = ["captions.source=store", f"captions.store={tmp_path / 'captions'}", "captions.imported=by-hand"]
    config = load_config(RunConfig, run, keys)
    assert _texts(run, store_of(config))[:2] == [["first", "second"], ["by hand 00001"]]
    assert "taken in as by-hand" in captions_come(config)
    with pytest.raises(ValueError, match=r"captions.imported \(other\): .* import --captioner other"):
        captions_come(load_config(RunConfig, run, [*keys[:2], "captions.imported=other"]))
    with pytest.raises(ValueError, match=r"imported \(by-hand\) are captions of a store: set source=store, not live"):
        load_config(RunConfig, run, ["captions.source=live", keys[2]])


def test_chunks_that_a_file_lacks_are_left_to_the_captioner_or_named_as_needed(run, store, tmp_path, capsys):
    (tmp_path / "none.csv").write_text(f"sha256,captions\n{'0' * 64},a text\n")
    for name in store.shard_names():
        storage.delete_folder(storage.join(store.folder, name))
    for captioner, hint in ((FINGERPRINT, "tips-ray caption makes them whole"), ("other", "a run needs all of them")):
        _captions("import", tmp_path / "captions", tmp_path / "none.csv", "--run", run, "--captioner", captioner)
        assert f"6 chunks hold images that the file lacks: {hint}" in capsys.readouterr().out


def test_a_wrong_argument_is_told_in_a_sentence(run, store, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    (tmp_path / "wrong.jsonl").write_text(json.dumps({"hash": "0", "captions": ["a"]}))
    CaptionStore(str(tmp_path / "captions"), "f" * 16).describe({})
    for arguments, part in (
        (("stats", "empty"), "there are no captions; it has none"),
        (("stats", "captions", "--captioner", "77"), f"no captions of captioner 77; it has {FINGERPRINT}"),
        (("export", "captions"), "captions export needs FILE behind STORE"),
        (("export", "captions", "x.parquet"), "several captioners"),
        (("export", "captions", "x.txt", "--captioner", "f"), "must end with .parquet or .jsonl"),
        (("import", "captions", "wrong.jsonl"), "needs --run RUN.yaml"),
        (("import", "captions", "wrong.jsonl", "--run", "run.yaml"), "row 1: it needs sha256"),
    ):
        places = [tmp_path / word if "." in word or word in ("captions", "empty") else word for word in arguments]
        assert _captions(*places) == 2
        assert part in capsys.readouterr().err
