"""What a run reports about its workers while it trains."""

import json
import time
from math import log

import pytest
from toy_run import tiny_run

from tips_ray import console
from tips_ray.config import RunConfig
from tips_ray.launch import progress
from tips_ray.launch.progress import news, shown_progress
from tips_ray.runs.folder import RunFolder

CHANGE = {"kind": "change", "step": 40, "from": 8, "to": 6, "steps_recomputed": 3, "seconds_lost": 21.4}


@pytest.mark.parametrize(
    ("event", "sentence"),
    [
        (CHANGE, "training goes on from step 40; workers: 6 (8 before); 3 steps again, 21 s lost"),
        ({"kind": "stop", "cause": "lost: rank 3"}, "workers start again: lost: rank 3"),
        ({"kind": "waiting", "room": 1, "min_workers": 2}, "there is room for 1, at least 2 must train"),
        ({"kind": "idle", "workers": 4, "room": 5}, "workers: 4 train, 1 more would fit"),
        ({"kind": "damaged", "step": 8, "error": "sha256 differs"}, "step 8 is damaged, the one before is taken"),
        ({"kind": "damaged", "step": 8, "error": "sha256 differs", "next": 4}, "step 8 is damaged, that of step 4 is"),
        ({"kind": "damaged", "step": 8, "error": "e", "next": 0}, "no older one is left, and the run begins again at"),
        ({"kind": "checkpoint"}, ""),
    ],
)
def test_events_that_change_the_workers_are_sentences(event, sentence):
    assert sentence in news(event) and bool(sentence) == bool(news(event))


LINE = {"loss/total": 2.0, "images_per_second": 4.0, "data_wait_share": 0.2}


@pytest.fixture(autouse=True)
def soon_and_plain_again(monkeypatch):
    monkeypatch.setattr(progress, "POLL_SECONDS", 0.01)
    yield
    console.speak("lines")


def _config(tmp_path) -> RunConfig:
    """A hundred steps of 8 images, 20 of warm-up."""
    return tiny_run(tmp_path, "photos", schedule__total_steps=100)


def _told(capsys, words: str) -> str:
    """All that is told until the words are."""
    shown = ""
    while words not in shown:
        shown += capsys.readouterr().out
        time.sleep(0.01)
    return shown


def test_only_what_happens_from_now_on_is_told(tmp_path, capsys):
    folder, config = RunFolder(str(tmp_path)), _config(tmp_path)
    folder.log_event("stop", None, cause="of an earlier driver")
    folder.log_metrics(7, LINE)
    with shown_progress(folder, config):
        _told(capsys, "starting workers\n")  # by then it has read the earlier events
        folder.log_event("stop", None, cause="now")
    assert capsys.readouterr().out == "workers start again: now\n"


def test_a_line_has_step_loss_speed_workers_waits_and_time_left(tmp_path, capsys):
    """The first speed is a start's. After it, 40 steps of 8 images at 4 images/s are left: 80 s."""
    folder = RunFolder(str(tmp_path))
    with shown_progress(folder, _config(tmp_path)):
        folder.log_event("start", 0, workers=2)
        folder.log_metrics(1, {**LINE, "images_per_second": 0.1, "data_wait_share": 0.01})
        assert _told(capsys, "step 1/") == "starting workers\nstep 1/100  loss 2.000  0 images/s  2 workers\n"
        folder.log_metrics(60, LINE)
        line = "step 60/100  loss 2.000  4 images/s  2 workers  20% waiting for data  80 s left\n"
        assert _told(capsys, "step 60/") == line


def test_what_is_ill_is_in_the_line_and_told_with_a_cure_at_the_end(tmp_path, capsys):
    folder = RunFolder(str(tmp_path))
    for step in range(1, 100):
        folder.log_metrics(step, {"loss/contrastive_web": log(8)})
    with shown_progress(folder, _config(tmp_path)):
        _told(capsys, "starting")
        folder.log_metrics(100, {**LINE, "loss/contrastive_web": log(8)})
    line, sentence = capsys.readouterr().out.splitlines()
    assert line.startswith("step 100/100") and line.endswith("! contrastive_web at ln N")
    assert sentence.startswith("health     contrastive_web: nothing is learned: 2.08") and "; try: lower" in sentence


def test_a_start_that_takes_long_says_what_it_waits_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "FIRST_HINT_SECONDS", 0.05)
    folder = RunFolder(str(tmp_path))
    with shown_progress(folder, _config(tmp_path), "look there"):
        assert "so far: their processes start, build the networks" in _told(capsys, "look there\n")
        folder.log_event("start", 0, workers=2)
        _told(capsys, "2 of them run, and the first step is not done; look there\n")


def test_json_has_every_event_and_all_metrics(tmp_path, capsys):
    folder = RunFolder(str(tmp_path))
    console.speak("json")
    with shown_progress(folder, _config(tmp_path)):
        _told(capsys, "starting")
        folder.log_event("checkpoint", 4, uri="there")
        folder.log_metrics(5, {**LINE, "loss/total": float("nan")})
    event, line = map(json.loads, capsys.readouterr().out.splitlines())
    assert (event["kind"], event["step"], event["uri"], event["text"]) == ("checkpoint", 4, "there", "")
    assert (line["kind"], line["step"], line["total_steps"], line["ill"]) == ("progress", 5, 100, [])
    assert line["metrics"] == {**LINE, "loss/total": None}


def test_quiet_shows_nothing(tmp_path, capsys):
    console.speak("quiet")
    with shown_progress(folder := RunFolder(str(tmp_path)), _config(tmp_path)):
        folder.log_event("stop", None, cause="now")
        time.sleep(0.1)
    assert capsys.readouterr() == ("", "")
