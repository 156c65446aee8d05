"""What a run reports about its workers while it trains."""

import time

import pytest

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


def test_only_what_happens_from_now_on_is_told(tmp_path, capsys):
    folder = RunFolder(str(tmp_path))
    folder.log_event("stop", None, cause="of an earlier driver")
    folder.log_metrics(7, {"loss/total": 2.0, "images_per_second": 5.0})
    with shown_progress(folder, total_steps=10):
        shown = ""
        while "starting workers" not in shown:  # by then it has read the earlier events
            shown += capsys.readouterr().out
            time.sleep(0.01)
        folder.log_event("stop", None, cause="now")
    assert capsys.readouterr().out == "workers start again: now\n"
    with shown_progress(folder, total_steps=10):
        time.sleep(0.1)
        folder.log_metrics(8, {"loss/total": 1.0, "images_per_second": 5.0})
    assert capsys.readouterr().out == "starting workers\nstep 8/10  loss 1.000  5 images/s\n"
