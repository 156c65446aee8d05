"""A driver that ends is started again while that may help."""

import os
import shutil
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest

from tips_ray.errors import RunFailedError, RunStopped
from tips_ray.launch.supervisor import TRIES, cluster_answers, supervise
from tips_ray.runs.folder import RunFolder


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    return RunFolder(str(tmp_path / "run"))


def _driver(tmp_path: Path, *endings: str) -> list[str]:
    """A command that ends in another way at each start; a file with one byte per start counts them."""
    starts = tmp_path / "starts"
    code = f"import os, sys, signal; n = os.path.getsize({str(starts)!r}) if os.path.exists({str(starts)!r}) else 0; "
    code += f"open({str(starts)!r}, 'a').write('x'); exec({list(endings)!r}[n])"
    return [sys.executable, "-c", code]


def _starts(tmp_path: Path) -> int:
    return (tmp_path / "starts").stat().st_size


def _no_wait(seconds: float) -> None:
    raise AssertionError("it is started again")


KILLED = "os.kill(os.getpid(), signal.SIGKILL)"


def test_a_killed_driver_is_started_again_until_it_ends_well(folder, tmp_path):
    waits: list[float] = []
    assert supervise(_driver(tmp_path, KILLED, "sys.exit(1)", "sys.exit(2)", "pass"), folder, waits.append) == 0
    assert _starts(tmp_path) == 4 and waits == [5, 10, 20]


def test_a_mistake_at_the_first_start_is_not_tried_again(folder, tmp_path):
    assert supervise(_driver(tmp_path, "sys.exit(2)"), folder, _no_wait) == 2


def test_while_another_start_trains_the_run_it_waits_and_that_is_no_failure(folder, tmp_path):
    waits: list[float] = []
    endings = ["sys.exit(3)"] * (TRIES + 1) + [KILLED, "sys.exit(3)", "pass"]
    assert supervise(_driver(tmp_path, *endings), folder, waits.append) == 0
    assert waits == [30] * (TRIES + 1) + [5, 30]


def test_a_start_that_waits_for_another_ends_when_the_run_is_asked_to_stop(folder, tmp_path, monkeypatch):
    asked = iter([False, True, True])
    monkeypatch.setattr("tips_ray.launch.supervisor._was_asked_to_stop", lambda _: next(asked))
    waits: list[float] = []
    assert supervise(_driver(tmp_path, "sys.exit(3)", "sys.exit(3)"), folder, waits.append) == RunStopped.exit_code
    assert waits == [30]


def test_an_interrupted_driver_is_not_started_again(folder, tmp_path):
    assert supervise(_driver(tmp_path, "sys.exit(130)"), folder, _no_wait) == 130


def test_sigterm_ends_driver_and_supervisor(folder, tmp_path):
    ready = tmp_path / "ready"
    driver = [sys.executable, "-c", f"import pathlib, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(60)"]

    def terminate() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    assert supervise(driver, folder, _no_wait) == RunStopped.exit_code


def test_a_signal_that_is_ignored_as_below_nohup_ends_nothing(folder, tmp_path):
    before, ready = signal.signal(signal.SIGHUP, signal.SIG_IGN), tmp_path / "ready"
    driver = [sys.executable, "-c", f"import pathlib, sys, time; pathlib.Path({str(ready)!r}).touch(); time.sleep(1)"]

    def hang_up() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGHUP)

    threading.Thread(target=hang_up).start()
    try:
        assert supervise([*driver[:-1], f"{driver[-1]}; sys.exit(2)"], folder, _no_wait) == 2
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_run_that_gets_farther_each_time_is_not_given_up_before_its_first_checkpoint(folder, tmp_path):
    made = RunFolder(f"{tmp_path}/made")
    for attempt in range(TRIES):  # written here: a driver that imports the library takes a second
        made.drop_after(0)
        made.log_metrics(attempt + 1, {"loss/total": 1.0})
        made.flush()
        shutil.copytree(made.uri, tmp_path / "attempts" / str(attempt))
    copied = f"shutil.copytree(f'{tmp_path}/attempts/{{n}}', {folder.uri!r}, dirs_exist_ok=True)"
    log = f"import shutil; {copied}; os._exit(9)"
    assert supervise(_driver(tmp_path, *[log] * TRIES, "pass"), folder, lambda seconds: None) == 0
    assert _starts(tmp_path) == TRIES + 1 and folder.read_metrics()[-1]["step"] == TRIES


def test_a_cluster_that_is_away_for_long_costs_no_try_and_is_waited_for(folder, tmp_path, capsys):
    looks, waits = iter([False, False, True] * 7), []
    ends = [KILLED, *["sys.exit(2)"] * 6, "pass"]  # TRIES and more starts that could not join the cluster
    assert supervise(_driver(tmp_path, *ends), folder, waits.append, lambda: next(looks)) == 0
    assert _starts(tmp_path) == 8 and waits == [10, 5] * 7
    assert "does not answer; this waits for it, 30 minutes at most" in capsys.readouterr().out


def test_a_cluster_that_stays_away_ends_the_wait_in_a_sentence_that_says_how_to_go_on(folder, tmp_path):
    waits: list[float] = []
    with pytest.raises(RunFailedError, match="away for 30 minutes: start it again, then the same command goes on"):
        supervise(_driver(tmp_path, KILLED), folder, waits.append, lambda: False)
    assert _starts(tmp_path) == 1 and sum(waits) == 1800


def test_a_cluster_that_comes_and_goes_is_not_waited_for_for_ever(folder, tmp_path):
    looks, waits = iter(([False] * 61 + [True]) * 5), []
    with pytest.raises(RunFailedError, match="away for 30 minutes"):
        supervise(_driver(tmp_path, KILLED, *["sys.exit(2)"] * 9), folder, waits.append, lambda: next(looks))
    assert sum(seconds for seconds in waits if seconds == 10) == 1800


def test_starts_that_fail_on_a_cluster_that_answers_count(folder, tmp_path):
    with pytest.raises(RunFailedError, match="failed 5 times .* ended with code 2"):
        supervise(_driver(tmp_path, KILLED, *["sys.exit(2)"] * 9), folder, lambda seconds: None, lambda: True)


def test_an_address_at_which_nobody_listens_is_a_cluster_that_is_away(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{server.getsockname()[1]}")
        assert cluster_answers()
    assert not cluster_answers()
    monkeypatch.delenv("RAY_ADDRESS")
    assert cluster_answers()


def test_a_run_that_is_asked_to_stop_while_its_driver_is_lost_is_not_started_again(folder, tmp_path):
    log = "from tips_ray.runs import lease, stop; "
    log += f"lease.take({folder.uri!r}); stop.ask_to_stop({folder.uri!r}, 'a test'); os._exit(9)"
    assert supervise(_driver(tmp_path, log), folder, _no_wait) == RunStopped.exit_code


def test_a_run_without_progress_is_given_up(folder, tmp_path):
    with pytest.raises(
        RunFailedError,
        match="failed 5 times without getting farther than step 0; the last time the driver was killed by SIGKILL",
    ):
        supervise(_driver(tmp_path, *[KILLED] * TRIES), folder, lambda seconds: None)
    assert _starts(tmp_path) == TRIES


@pytest.mark.heavy
def test_an_error_that_would_come_again_is_not_tried_again(folder, tmp_path):
    log = f"from tips_ray.runs.folder import RunFolder; folder = RunFolder({folder.uri!r}); "
    log += "folder.log_event('failure', 3, error='bad rows', type='ValueError', is_final=True); sys.exit(1)"
    assert supervise(_driver(tmp_path, log), folder, _no_wait) == 1
