"""The real command in this process: a user's mistake ends in one line each, and in nothing else."""

import pytest
import yaml
from bad_input.mistakes import CATALOGUE, NOBODY, Mistake, World

from jobs.cli import main
from tips_ray.storage import errors


@pytest.fixture
def world(tmp_path, s3_server, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
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
        assert line.startswith("error: ") and words in line
    assert "Traceback" not in shown.err + shown.out and world.server.secret not in shown.err + shown.out


def test_without_a_mistake_a_dry_run_prints_a_config_and_facts(world, capsys):
    assert main(["pretrain", world.config(), "--dry-run"]) == 0
    shown = capsys.readouterr()
    assert yaml.safe_load(shown.out)["name"] == "run" and not shown.err
    assert "# run        run is new" in shown.out and "# data       8 rows in 1 shards" in shown.out


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
