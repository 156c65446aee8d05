"""The real command in this process: a user's mistake ends in one line each, and in nothing else."""

import os
from pathlib import Path

import pytest
import yaml
from bad_input.mistakes import CATALOGUE, Mistake
from bad_input.world import NOBODY, ROWS, World

from jobs.cli import main
from tips_ray.storage import errors


@pytest.fixture
def world(tmp_path, s3_server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("RAY_ADDRESS", "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT", "http_proxy", "no_proxy"):
        monkeypatch.setenv(name, "")  # so that what a command changes is put back
        monkeypatch.delenv(name)
    monkeypatch.setattr(errors, "BACKOFF_SECONDS", (0.01, 0.01))
    return World(tmp_path, s3_server, monkeypatch)


def _code(argv: list[str]) -> int:
    try:
        return main(argv)
    except SystemExit as stop:  # argparse
        assert isinstance(stop.code, int)
        return stop.code


@pytest.mark.parametrize("mistake", CATALOGUE, ids=lambda mistake: mistake.name.replace(" ", "-"))
def test_a_mistake_ends_in_one_line_that_names_it(mistake: Mistake, world, capsys):
    argv = mistake.make(world)
    capsys.readouterr()
    assert _code(argv) == 2
    shown = capsys.readouterr()
    lines = shown.err.splitlines()
    assert len(lines) == len(mistake.words), shown.err
    for line, words in zip(lines, mistake.words, strict=True):
        assert line.startswith("error: ") and words in f"{line}\n" and len(line) < 620
    assert "Traceback" not in shown.err + shown.out and world.server.secret not in shown.err + shown.out


def test_without_a_mistake_a_dry_run_prints_a_config_and_facts(world, capsys):
    assert main(["pretrain", world.config(), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["name"] == "run" and not shown.err
    assert "# run        run is new" in shown.out and "# data       8 rows in 1 shards" in shown.out


def test_a_dry_run_counts_bad_rows_and_those_without_captions_behind_the_first_chunk_too(world, capsys):
    path = world.config()
    world.data(caption=[b"\xff", *[b"a dog"] * (ROWS - 2), None])
    assert main(["pretrain", path, "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert f"; 1 of {ROWS} rows that were looked at are bad: its caption is bytes" in told
    place = f"train.parquet#{ROWS - 1}"
    assert f"; 1 of {ROWS} rows that were looked at have no web caption, e.g. {place}: they are bad rows; " in told


def test_a_dry_run_leaves_the_name_free(world):
    assert main(["pretrain", world.config(), "--dry-run"]) == 0
    assert not (world.folder / "runs" / "run").exists()
    assert main(["pretrain", world.config(), "seed=1", "--dry-run"]) == 0


def test_a_start_is_refused_for_the_same_faults_as_a_dry_run(world, capsys):
    argv = ["pretrain", world.config(), f"tracking.mlflow_uri=http://{NOBODY}", "resources.gpus_per_worker=999"]
    assert main([*argv, "--dry-run"]) == main(argv) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and lines[:2] == lines[2:]
    assert not (world.folder / "runs" / "run").exists()


@pytest.mark.parametrize("key", ["a//train.parquet", "a/../train.parquet", "a/./train.parquet"])
def test_an_object_whose_key_arrow_cannot_name_is_read(key, world, capsys):
    bucket = world.server.make_bucket("odd-keys")
    world.set(**world.server.environment)
    content = world.data().read_bytes()
    world.server.client().put_object(Bucket="odd-keys", Key=key, Body=content)
    assert main(["index", world.config(), f"data.sources=[{{uri: '{bucket}/{key}'}}]"]) == 0
    shown = capsys.readouterr()
    assert "8 rows in 1 shards" in shown.out and "a dog number 0" in shown.out


def test_a_merged_block_may_replace_keys_of_its_anchor(world, capsys):
    text = Path(world.config()).read_text() + "schedule: {<<: &a {total_steps: 7, peak_lr: 1e-2}, peak_lr: 5e-3}\n"
    assert main(["pretrain", world.config(text), "--dry-run"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["schedule"]["peak_lr"] == 5e-3


def test_empty_variables_of_torchrun_count_as_unset(world):
    world.set(WORLD_SIZE="", RANK="", LOCAL_RANK="", LOCAL_WORLD_SIZE="")
    assert main(["pretrain", world.config(), "--dry-run"]) == 0
    assert main(["pretrain", world.config(), "--without-ray", "--dry-run"]) == 0


def test_a_proxy_that_refuses_loopback_is_not_asked_for_a_store_here(world, capsys):
    bucket = world.s3(AWS_APP_ID="behind-a-proxy")  # another environment than that of clients made before
    world.set(http_proxy=f"http://{NOBODY}", no_proxy="intern.example")
    world.server.client().put_object(Bucket="empty", Key="behind/t.parquet", Body=world.data().read_bytes())
    assert main(["index", world.config(), f"data.sources=[{{uri: '{bucket}/behind/'}}]"]) == 0
    assert "8 rows in 1 shards" in capsys.readouterr().out
    assert os.environ["no_proxy"] == "intern.example,127.0.0.1,localhost,::1"
    world.server.client().delete_object(Bucket="empty", Key="behind/t.parquet")
