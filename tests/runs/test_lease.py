"""One start at a time trains a run; another is refused, takes over what is lost, and stops the one that was lost."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.cli import main
from tips_ray import storage
from tips_ray.runs import lease
from tips_ray.runs.lease import Holder, LeaseLostError, RunIsTrainedError, leased, newest, require_newest, take
from tips_ray.runs.stop import ask_to_stop, stop_asked


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(lease, "STILL_SECONDS", 0.5)
    monkeypatch.setattr(lease, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(lease, "SETTLE_SECONDS", 0.1)


def _elsewhere(run: str, generation: int = 1) -> Holder:
    """Put a lease into the folder as a start on another machine would."""
    holder = replace(lease._own(), place="another machine", host="gpu-7", process=4321)
    lease._write(run, generation, holder)
    return holder


def test_a_second_start_is_refused_and_told_who_trains(folder):
    with leased(folder) as generation:
        assert generation == 1
        with pytest.raises(
            RunIsTrainedError, match=r"is being trained by process \d+ on .*, since 20.*tips-ray runs stop"
        ):
            take(folder)
    assert take(folder)[0] == 2


@pytest.mark.parametrize("apart", [0, 0.03])
def test_of_starts_at_one_moment_or_close_together_one_trains(folder, apart):
    def start(number: int) -> bool:
        time.sleep(apart * number)
        try:
            return bool(take(folder))
        except RunIsTrainedError:
            return False

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(start, range(6))) == 1


def test_a_killed_process_of_this_machine_is_not_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "STILL_SECONDS", 1e9)
    code = f"import os; from tips_ray.runs.lease import take; take({str(tmp_path)!r}); os._exit(9)"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False)
    assert newest(str(tmp_path))[0] == 1
    assert take(str(tmp_path))[0] == 2


def test_a_process_id_that_is_used_again_is_not_the_holder(tmp_path):
    holder = replace(lease._own(), process_start="1")
    lease._write(str(tmp_path), 1, holder)
    assert take(str(tmp_path))[0] == 2


def test_a_start_elsewhere_is_believed_while_its_lease_changes(tmp_path):
    holder, is_over = _elsewhere(str(tmp_path)), threading.Event()

    def beat() -> None:
        count = 0
        while not is_over.wait(0.1):
            lease._write(str(tmp_path), 1, replace(holder, beat=(count := count + 1)))

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(RunIsTrainedError, match="process 4321 on gpu-7"):
        take(str(tmp_path))
    is_over.set()
    beating.join()
    assert take(str(tmp_path))[0] == 2  # it is silent now


@pytest.mark.parametrize("content", [b"", b"{", b'{"token": 3}', b"[]"])
def test_a_lease_that_a_kill_cut_off_is_waited_for_as_a_silent_one(tmp_path, content):
    storage.write_bytes(lease._uri(str(tmp_path), 1), content)
    began = time.monotonic()
    assert take(str(tmp_path))[0] == 2 and time.monotonic() - began >= 0.5


def test_a_store_that_lets_several_writers_win_has_one_holder_in_the_end(s3, tmp_path, monkeypatch):
    run = f"{s3.make_bucket('lease')}/{tmp_path.name}"

    def won_by_both(uri: str, text: str) -> bool:
        storage.write_text(uri, text)
        if not rival.is_set():
            rival.set()
            lease._write(run, 1, replace(lease._own(), place="another machine", host="gpu-7"))
        return True

    rival = threading.Event()
    monkeypatch.setattr(storage, "create_text", won_by_both)
    assert take(run)[0] == 2  # the rival is silent afterwards
    assert newest(run)[0] == 2


def test_a_start_that_was_taken_over_notices(folder, capsys):
    holder = _elsewhere(folder)
    storage.write_text(storage.join(folder, "config.yaml"), "name: tiny")
    require_newest(folder, 1)
    assert main(["runs", "unlock", folder]) == 0
    assert f"is free: {holder} can write no checkpoint any more" in capsys.readouterr().out
    with pytest.raises(LeaseLostError, match="was taken over by process .* writes no checkpoint any more"):
        require_newest(folder, 1)
    assert take(folder)[0] == 3


def test_unlock_refuses_a_start_that_is_alive_here_and_a_folder_that_is_no_run(tmp_path, capsys):
    assert main(["runs", "unlock", str(tmp_path)]) == 2
    assert "is no run folder: it has no config.yaml" in capsys.readouterr().err
    storage.write_text(storage.join(str(tmp_path), "config.yaml"), "name: tiny")
    assert main(["runs", "unlock", str(tmp_path)]) == 2
    assert "has no lease" in capsys.readouterr().err
    with leased(str(tmp_path)):
        assert main(["runs", "unlock", str(tmp_path)]) == 2
        assert "tips-ray runs stop, or kill it" in capsys.readouterr().err
    assert main(["runs", "unlock", str(tmp_path)]) == 0
    assert "has released it" in capsys.readouterr().out


def test_a_holder_shows_that_it_lives(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.05)
    with leased(str(tmp_path)):
        before, deadline = newest(str(tmp_path))[1], time.monotonic() + 20
        while newest(str(tmp_path))[1] == before:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    found = newest(str(tmp_path))[1]
    assert found and found.is_released


def test_a_request_to_stop_reaches_the_start_that_trains_and_no_later_one(folder, capsys):
    storage.write_text(storage.join(folder, "config.yaml"), "name: tiny")
    assert main(["runs", "stop", folder]) == 2
    assert "nothing trains it now" in capsys.readouterr().err
    with leased(folder) as generation:
        assert stop_asked(folder, generation) is None
        assert main(["runs", "stop", folder, "--pause"]) == 0
        assert "asked process" in capsys.readouterr().out
        request = stop_asked(folder, generation)
        assert request and request.kind == "pause" and str(request).startswith("paused by ")
    with leased(folder) as generation:
        assert stop_asked(folder, generation) is None
    with pytest.raises(ValueError, match="nothing trains it now"):
        ask_to_stop(folder, "a test")
    storage.write_text(storage.join(folder, "lease/00000007.json"), "{")
    assert main(["runs", "stop", folder]) == 0
    assert "asked whoever trains it (its lease is damaged) to save" in capsys.readouterr().out


@pytest.mark.parametrize("content", [b"", b"stop", b"{}", b'{"generation": 1}', b"\xff"])
def test_a_request_that_is_damaged_is_none(tmp_path, content):
    storage.write_bytes(storage.join(str(tmp_path), "stop.json"), content)
    assert stop_asked(str(tmp_path), 1) is None
