"""Leftovers of runs and storage: what is deleted, and above all what is not; local and on a real S3 server."""

import json
import os
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from runs.test_status import CONFIG, _held, _run

from jobs.cli import main
from tips_ray import storage
from tips_ray.runs import lease
from tips_ray.runs.checkpoint import VERSION, checkpoints_of, list_checkpoints, manifest_of, uri_of
from tips_ray.runs.gc import collect, find_orphans
from tips_ray.runs.lease import leased
from tips_ray.runs.status import status_of


def _checkpoint(run: str, step: int, **manifest: object) -> str:
    """A checkpoint of one file of 3 bytes; `manifest` adds keys, and `manifest=None` leaves it out."""
    uri = uri_of(checkpoints_of(run), step)
    storage.write_text(f"{uri}/part.pt", "abc")
    if manifest.pop("manifest", True):
        files = {"part.pt": {"bytes": 3, "sha256": "unread"}}
        text = json.dumps({"version": VERSION, "step": step, "files": files, **manifest})
        storage.write_text(manifest_of(uri), text)
    return uri


def _littered(run: str) -> None:
    """A run that has ended, with every kind of leftover and everything that must stay."""
    _run(run, 50, status="KILLED")
    for step in (10, 20):
        _checkpoint(run, step)
    _checkpoint(run, 30, damaged="part.pt\nis cut")
    _checkpoint(run, 40, manifest=False)
    storage.write_text(f"{checkpoints_of(run)}/of-ada/part.pt", "kept by hand")
    storage.write_text(f"{run}/bad_steps/step-00000005/rank-00000.pt", "x")
    storage.write_text(f"{run}/bad_steps/step-00000006/bad_step.json", "{}")
    storage.write_text(f"{run}/ray/notes.json", "{}")
    storage.write_text(f"{run}/evaluation/step-00000020/results.json", "{}")
    own = lease._own()
    for generation in (1, 2):
        lease._write(run, generation, replace(own, is_released=True))


def _names(uri: str) -> set[str]:
    return {file.uri.removeprefix(f"{uri}/") for file in storage.list_files(uri, hidden=True)}


GONE = {
    "checkpoints/step-00000030/part.pt",
    "checkpoints/step-00000030/manifest.json",
    "checkpoints/step-00000040/part.pt",
    "bad_steps/step-00000005/rank-00000.pt",
    "ray/notes.json",
    "lease/00000001.json",
    "lease/00000002.json",
}


def test_leftovers_go_and_all_else_stays(folder, capsys):
    run = f"{folder}/small"
    _littered(run)
    before, was = _names(run), status_of(run)
    assert main(["runs", "gc", run, "--dry-run"]) == 0
    told = capsys.readouterr().out
    for words in ("damaged checkpoint: part.pt is cut", "half-written checkpoint", "half-written bad step", "notes of"):
        assert words in told
    assert "5 to collect" in told and _names(run) == before, "a dry run deletes nothing"
    assert main(["runs", "gc", run]) == 0
    assert "deleted" in capsys.readouterr().out
    assert before - _names(run) == GONE and _names(run) - before == {"lease/00000003.json"}
    assert [one.step for one in list_checkpoints(checkpoints_of(run))] == [10, 20]
    now = status_of(run)
    assert (now.state, now.why) == (was.state, was.why)
    main(["runs", "gc", run])
    assert capsys.readouterr().out == "nothing to collect\n"


def test_a_killed_run_stays_killed(tmp_path):
    run = f"{tmp_path}/small"
    _littered(run)
    _held(run, process_start="long ago")
    lease._write(run, 3, replace(lease._own(), process_start="long ago"))
    was = status_of(run)
    assert was.state == "killed"
    collect(find_orphans(run))
    assert (status_of(run).state, status_of(run).why) == ("killed", was.why)
    with leased(run):
        pass


def test_damaged_checkpoints_stay_where_there_is_no_whole_one(tmp_path):
    run = f"{tmp_path}/small"
    _run(run)
    _checkpoint(run, 30, damaged="cut")
    cut = _checkpoint(run, 20)
    storage.write_text(f"{cut}/part.pt", "a")
    assert not find_orphans(run).orphans


@pytest.mark.parametrize("whose", ["own", "of another machine", "damaged"])
def test_a_run_that_may_be_trained_is_left_alone(tmp_path, whose, capsys):
    run = f"{tmp_path}/small"
    _littered(run)
    held = {"own": lease._own(), "of another machine": replace(lease._own(), place="elsewhere")}
    if whose in held:
        lease._write(run, 3, held[whose])
    else:
        storage.write_text(f"{run}/lease/00000003.json", "{")
    before = _names(run)
    assert main(["runs", "gc", run]) == 0
    told = capsys.readouterr().out
    assert "left alone: " in told and "is held by" in told and "nothing to collect" in told
    assert _names(run) == before


def test_a_start_between_the_search_and_the_deletion_keeps_its_files(tmp_path):
    run = f"{tmp_path}/small"
    _littered(run)
    found = find_orphans(run)
    with leased(run):
        _checkpoint(run, 40)
        before = _names(run)
        gone = collect(found)
        assert not gone.orphans and "is held by" in gone.left[0] and _names(run) == before
    collect(found)
    assert [one.step for one in list_checkpoints(checkpoints_of(run))] == [10, 20, 40], "it is whole by now"


def _index(storage_uri: str, name: str, fingerprint: str, days: float) -> str:
    made = (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")
    head = {"version": 2, "fingerprint": fingerprint, "earlier": "", "created": made}
    storage.write_text(f"{storage_uri}/index/{name}/index.json", json.dumps(head))
    storage.write_text(f"{storage_uri}/index/{name}/shards.parquet", "12345")
    return f"{storage_uri}/index/{name}"


def test_of_indexes_only_old_ones_of_data_that_no_run_has_go(folder):
    _run(f"{folder}/one")
    storage.write_text(f"{folder}/one/data.json", json.dumps({"fingerprint": "of one"}))
    storage.write_text(f"{folder}/sweep/trials/7/config.yaml", CONFIG)
    storage.write_text(f"{folder}/sweep/trials/7/data.json", json.dumps({"fingerprint": "of seven"}))
    useless = _index(folder, "d", "of none", days=8)
    for name, fingerprint, days in (("a", "of one", 99), ("b", "of seven", 99), ("c", "of none", 6)):
        _index(folder, name, fingerprint, days)
    found = find_orphans(folder)
    assert [orphan.uri for orphan in found.orphans] == [useless] and "no run here has" in found.orphans[0].why
    collect(found)
    assert sorted(uri[-1] for uri in storage.list_folders(f"{folder}/index")) == ["a", "b", "c"]


def test_unfinished_writes_go_once_nobody_can_write_them_any_more(tmp_path):
    uri = str(tmp_path)
    run = _run(f"{uri}/one").uri
    old = time.time() - 3700
    whole = _index(uri, "d", "of one", days=9)
    litter = [f"{run}/metrics/.x.jsonl.{'a' * 32}.tmp", f"{whole}/.shards.parquet.{'b' * 32}.tmp"]
    litter += [f"{uri}/.mlflow-abcd/mlflow.db", f"{uri}/index/half/chunks.parquet"]
    storage.write_text(f"{run}/data.json", json.dumps({"fingerprint": "of one"}))
    within = f"{uri}/index/half/.shards.parquet.{'d' * 32}.tmp"
    kept = [
        f"{run}/metrics/.y.jsonl.{'c' * 32}.tmp",
        f"{run}/.tips_ray",
        f"{run}/.x.tmp",
        f"{uri}/index/new/shards.parquet",
    ]
    for path in (*litter, within, *kept):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text("x")
    for path in (*litter, within, *kept[1:3]):
        os.utime(path, (old, old))
    found = find_orphans(uri)
    assert {orphan.uri for orphan in found.orphans} == {*litter[:3], f"{uri}/index/half"}
    collect(found)
    assert not any(map(os.path.exists, (*litter, within))) and all(map(os.path.exists, kept))


def test_what_is_not_there_is_a_sentence(tmp_path, capsys):
    assert main(["runs", "gc", str(tmp_path / "none")]) == 2
    assert main(["runs", "gc"]) == 2
    assert main(["runs", "list", "--dry-run"]) == 2
    told = capsys.readouterr().err
    assert "no file is there" in told and "gc needs RUN" in told and "--dry-run is for gc" in told
