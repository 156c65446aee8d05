"""When the driver interrupts a run that was asked to leave."""

import os
import signal
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from toy_run import tiny_run, toy_job

from tips_ray.launch import stops
from tips_ray.runs import RunFolder


@pytest.mark.parametrize(
    ("logged", "seconds"),
    [(["waiting"], 0), (["resume"], 120), ([], 120), (["waiting", "step"], 120), (["step", "waiting"], 0)],
)
def test_a_run_that_waits_for_nodes_is_interrupted_at_once_and_others_have_time(tmp_path, monkeypatch, logged, seconds):
    run, waited = toy_job(tiny_run(tmp_path, "a"), str(tmp_path / "run")), []
    folder = RunFolder(run.uri)
    for what in logged:
        if what == "step":
            folder.log_metrics(1, {"loss/total": 1.0})
            folder.flush()
        else:
            folder.try_event(what, None)
    monkeypatch.setattr(stops, "stop_asked", lambda uri, generation: "stopped by SIGTERM")
    is_over = SimpleNamespace(wait=lambda seconds: waited.append(seconds) or True)
    stops._interrupt_if_stuck(run, is_over)  # pyright: ignore[reportArgumentType]
    assert waited == [seconds]


@pytest.mark.parametrize("number", stops.SIGNALS)
def test_a_signal_while_nothing_is_trained_ends_the_command_with_one_sentence(number, capfd):
    kept = signal.signal(number, before := signal.SIG_DFL)  # nohup has SIGHUP ignored
    with pytest.raises(SystemExit) as ended, stops.signals_end_quietly():
        os.kill(os.getpid(), number)
        time.sleep(5)
    assert ended.value.code == 128 + number and signal.getsignal(number) is before
    assert capfd.readouterr().err.startswith(f"{number.name}: no step is being trained")
    signal.signal(number, kept)


def test_a_signal_tells_a_sweep_before_the_trial_that_it_ends():
    kept, told = signal.signal(signal.SIGTERM, signal.SIG_DFL), list[str]()
    with stops.signals_stop(lambda by: told.append("sweep")):
        with stops.signals_stop(lambda by: told.append("trial")):
            _signalled(lambda: len(told) == 2)
        _signalled(lambda: len(told) == 3)
    assert told == ["sweep", "trial", "sweep"] and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    signal.signal(signal.SIGTERM, kept)


def _signalled(is_heard: Callable[[], bool]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    ends = time.monotonic() + 5
    while not is_heard() and time.monotonic() < ends:
        time.sleep(0.01)
