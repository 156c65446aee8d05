"""Where runs stand, told by their folders alone: local and on a real S3 server."""

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
import yaml
from toy_run import tiny_run

from jobs.cli import main
from tips_ray import storage
from tips_ray.runs import jsonl, lease
from tips_ray.runs.checkpoint import VERSION, checkpoints_of, manifest_of, uri_of
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import leased
from tips_ray.runs.status import status_of, statuses_below
from tips_ray.words import ago, bytes_text

CONFIG = "name: small\nglobal_batch_images: 8\nschedule: {total_steps: 100}\n"


def _run(uri: str, steps: int = 0, checkpoint: int | None = None, **end: str) -> RunFolder:
    """A run that a start has trained for some steps and has left, or not."""
    folder = RunFolder(uri)
    folder.claim(CONFIG)
    if steps:
        folder.log_event("start", 0, workers=2)
    for step in range(10, steps + 1, 10):
        folder.log_metrics(step, {"loss/total": 100.0 / step, "images_per_second": 4.0})
    if checkpoint is not None:
        place = uri_of(checkpoints_of(uri), checkpoint)
        storage.write_text(manifest_of(place), json.dumps({"version": VERSION, "step": checkpoint, "files": {}}))
    if end:
        folder.log_event("end", None, **end)
    folder.flush()
    return folder


def _held(uri: str, **changes: Any) -> None:
    """A lease as a start on another machine writes it, or one on this machine that has gone."""
    since = datetime.now(UTC) - timedelta(hours=1)
    holder = replace(lease._own(), since=since.isoformat(timespec="seconds"), beat=360)
    lease._write(uri, 1, replace(holder, **changes))


def test_how_the_last_start_ended_is_the_state(folder):
    states = {}
    for name, steps, checkpoint, end in (
        ("new", 0, None, {}),
        ("complete", 100, 100, {"status": "FINISHED"}),
        ("paused", 50, 50, {"status": "SCHEDULED"}),
        ("stopped", 50, 50, {"status": "KILLED", "cause": "stopped by ada on here"}),
        ("saved", 100, 100, {}),
    ):
        _run(f"{folder}/{name}", steps, checkpoint, **end)
        one = status_of(f"{folder}/{name}")
        states[name] = one.state
        assert (one.step, one.total_steps, one.checkpoint) == (steps, 100, -1 if checkpoint is None else checkpoint)
    assert states.pop("saved") == "complete", "killed between its last save and its end"
    assert all(name == state for name, state in states.items())
    assert status_of(f"{folder}/stopped").why == "stopped by ada on here"
    failed = _run(f"{folder}/failed", 20, 10)
    failed.log_event("failure", 20, error="no room on the disk", type="StorageError", is_final=False, rank=0)
    failed.log_event("end", None, status="FAILED")
    failed.flush()
    one = status_of(f"{folder}/failed")
    assert (one.state, one.why, one.step, one.checkpoint) == ("failed", "no room on the disk", 20, 10)


def test_who_holds_the_run_now_decides_before_how_it_ended(tmp_path):
    uri = str(tmp_path / "run")
    folder = _run(uri, 50, 50, status="KILLED")
    for path in (tmp_path / "run" / "events").iterdir():  # long ago
        path.write_text(re.sub(r'"time": "20\d\d', '"time": "2001', path.read_text()))
    with leased(uri):
        assert status_of(uri).state == "starting", "nothing was logged since it holds the run"
        folder.log_event("resume", 50, workers=2)
        folder.drop_after(50)
        folder.log_metrics(60, {"loss/total": 1.0})
        one = status_of(uri)
        assert (one.state, one.step, one.starts) == ("training", 60, 2) and one.why.startswith("process ")
        folder.log_event("waiting", None, room=1, min_workers=2)
        assert status_of(uri).why == "for nodes: room for 1 workers, at least 2 must train"
    _held(uri, process_start="1")
    assert status_of(uri).state == "killed" and "is gone without a word" in status_of(uri).why
    _held(uri, place="another machine", host="gpu-7")
    assert status_of(uri).state == "waiting", "it beats"
    _held(uri, place="another machine", host="gpu-7", beat=0)
    assert status_of(uri).state == "silent" and "gpu-7" in status_of(uri).why and "for 60 min" in status_of(uri).why


def test_only_the_end_of_the_metrics_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(jsonl, "TAIL_BYTES", 500)
    folder = _run(f"{tmp_path}/run", 100)
    folder.drop_after(40)
    folder.log_metrics(50, {"loss/total": 7.0})
    read, sizes = storage.read_bytes, list[int]()

    def counted(*arguments: Any) -> bytes:
        sizes.append(len(content := read(*arguments)))
        return content

    monkeypatch.setattr(storage, "read_bytes", counted)
    last = RunFolder(f"{tmp_path}/run").last_metrics()
    assert last and (last["step"], last["loss/total"]) == (50, 7.0), "of the newest attempt"
    assert sizes and max(sizes) <= 500


def test_of_long_metrics_a_sample_is_read_in_order_and_without_what_a_restart_has_replaced(folder, monkeypatch):
    """1,000 steps, the last 400 of them replaced by 300 others, at 40 places."""
    monkeypatch.setattr(jsonl, "WHOLE_BYTES", 1000)
    monkeypatch.setattr(jsonl, "PLACE_BYTES", 300)
    run = RunFolder(f"{folder}/run")
    for step in range(1, 1001):
        run.log_metrics(step, {"loss/total": 1.0})
    run.drop_after(600)
    for step in range(601, 901):
        run.log_metrics(step, {"loss/total": 2.0})
    run.flush()
    sample = RunFolder(run.uri).sampled_metrics()
    steps = [line["step"] for line in sample]
    assert steps == sorted(set(steps)) and steps[0] == 1 and steps[-1] == 900 and 60 < len(steps) < 128
    assert all(line["loss/total"] == (1.0 if line["step"] <= 600 else 2.0) for line in sample)
    assert max(later - earlier for earlier, later in pairwise(steps)) < 25, "evenly"
    monkeypatch.setattr(jsonl, "WHOLE_BYTES", 1 << 20)
    assert len(RunFolder(run.uri).sampled_metrics()) == 900


def test_show_says_whether_the_losses_are_healthy(tmp_path, capsys):
    uri = f"{tmp_path}/run"
    folder = RunFolder(uri)
    folder.claim(yaml.safe_dump(tiny_run(tmp_path, "photos", schedule__total_steps=100).model_dump(mode="json")))
    for step in range(1, 101):
        folder.log_metrics(step, {"loss/contrastive_web": 1.0, "loss/contrastive_synthetic": 2.08})
    assert main(["runs", "show", uri]) == 0
    first, cure, second = [line for line in capsys.readouterr().out.splitlines() if line[:11].strip() in ("", "health")]
    assert first.startswith(
        "health     ill   contrastive_synthetic: nothing is learned: 2.08, where guessing gives ln 8"
    )
    assert cure.startswith("           try   lower schedule.peak_lr")
    assert second.startswith("health     good  contrastive_web: 1.00")


def test_list_and_show_tell_what_a_person_asks(tmp_path, capsys):
    _run(f"{tmp_path}/a", 50, 40, status="SCHEDULED")
    damaged = _run(f"{tmp_path}/b", 10)
    storage.write_text(f"{damaged.uri}/events/attempt-0001.jsonl", "no line\n")
    (tmp_path / "index").mkdir()
    assert [one.state for one in statuses_below(str(tmp_path))] == ["paused", "damaged"]
    assert main(["runs", "list", str(tmp_path)]) == 0
    head, first, second = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["run", "state", "step"]
    assert first.split()[:7] == [f"{tmp_path}/a", "paused", "50", "of", "100", "40", "2"]
    assert "damaged" in second and "is no line that a run has written" in second
    assert main(["runs", "show", f"{tmp_path}/a"]) == 0
    said = capsys.readouterr().out
    for words in (
        "state      paused\n",
        "step       50 of 100; newest checkpoint at 40; last sign ",
        "losses     loss/total 2\n",
        "speed      4 images/s\n",
        "starts     1\n",
        "next       the command that started it goes on from the newest checkpoint\n",
    ):
        assert words in said, said


def test_time_left_is_told_of_a_run_that_trains(tmp_path, capsys):
    """50 steps of 8 images at 4 images/s are 100 s."""
    uri = f"{tmp_path}/run"
    with leased(uri):
        _run(uri, 50)
        assert main(["runs", "show", uri]) == 0
    assert "speed      4 images/s, about 100 s left\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("list", "{folder}"), "holds no runs; give the storage of their configs"),
        (("show",), "show needs RUN, the folder of a run"),
        (("show", "{folder}"), "is no run folder: it has no config.yaml"),
    ],
)
def test_what_is_not_there_is_a_sentence(words, sentence, tmp_path, capsys):
    main(["runs", *(word.format(folder=tmp_path) for word in words)])
    told = capsys.readouterr()
    assert sentence in told.out + told.err and (told.out + told.err).count("\n") == 1


def test_times_and_sizes_in_words():
    assert [ago(seconds) for seconds in (-1, 45, 600, 10_000, 300_000)] == ["0 s", "45 s", "10 min", "3 h", "3 days"]
    assert [bytes_text(count) for count in (0, 999, 323_000, 5e9)] == ["0 B", "999 B", "323 kB", "5 GB"]


def test_a_status_is_a_line_and_an_exit_code_and_json_for_programs(tmp_path, capsys):
    done, left, bad = f"{tmp_path}/done", f"{tmp_path}/left", f"{tmp_path}/bad"
    _run(done, 100, 100, status="FINISHED")
    _run(left, 50, 50, status="KILLED", cause="stopped by ada")
    _run(bad, 20, None, status="FAILED")
    assert main(["runs", "status", done]) == 0
    assert capsys.readouterr().out == f"complete 100/100 {done}\n"
    assert main(["runs", "status", done, left]) == 75
    assert capsys.readouterr().out.endswith(f"stopped 50/100 {left} stopped by ada\n")
    with leased(left):
        assert main(["runs", "status", left, done]) == 10
    assert main(["runs", "status", str(tmp_path)]) == 1
    capsys.readouterr()
    assert main(["runs", "list", str(tmp_path), "--json"]) == 0
    found = {one["uri"]: one for one in json.loads(capsys.readouterr().out)}
    assert list(found) == [bad, done, left] and found[left]["why"] == "stopped by ada"
    assert found[done]["metrics"] == {"loss/total": 1.0, "images_per_second": 4.0} and found[bad]["checkpoint"] == -1
    main(["runs", "show", done, "--json"])
    assert json.loads(capsys.readouterr().out) == found[done]
    assert main(["runs", "status", f"{tmp_path}/none"]) == 2
    assert "is no run folder and holds none" in capsys.readouterr().err
