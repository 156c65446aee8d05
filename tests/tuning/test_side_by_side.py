"""Chains of commands: their order, how many run at a time, and that no process outlives the call."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tips_ray.errors import RunFailedError
from tuning.ablations import chains as module
from tuning.ablations.chains import Chain, side_by_side

ROOT = Path(__file__).parents[2]
STUBBORN = "trap '' INT; echo $$ > {pid}; while :; do sleep 0.1; done"


def _shell(folder: Path, name: str, *scripts: str) -> Chain:
    return Chain(name, [["sh", "-c", script] for script in scripts], folder / "logs" / f"{name}.log")


def _until(is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + 20
    while not is_so():
        assert time.monotonic() < ends
        time.sleep(0.02)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_commands_follow_each_other_and_no_more_chains_run_than_asked(tmp_path):
    """Each command records how many others run, by files that exist while they run."""
    script = "touch {0}.on; ls *.on | wc -l >> seen; sleep 0.2; rm {0}.on"
    chains = [_shell(tmp_path, name, f"cd {tmp_path}", f"cd {tmp_path}; {script.format(name)}") for name in "abcde"]
    told = []
    side_by_side(chains, 2, os.environ, lambda chain, seconds: told.append((chain.name, seconds)))
    seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
    assert sorted(name for name, _ in told) == list("abcde") and all(seconds >= 0.2 for _, seconds in told)
    assert len(seen) == 5 and max(seen) == 2


def test_a_failure_is_told_with_the_last_error_and_stops_the_others(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LEAVE_SECONDS", 0.3)
    pid = tmp_path / "pid"
    wait = f"while [ ! -s {pid} ]; do sleep 0.05; done"
    bad = _shell(
        tmp_path, "bad", f"{wait}; echo 'error: no data there.' >&2; echo bye; exit 2", f"touch {tmp_path}/second"
    )
    with pytest.raises(RunFailedError, match=r"^bad failed \(code 2\): no data there; .*logs/bad.log$"):
        side_by_side([bad, _shell(tmp_path, "stubborn", STUBBORN.format(pid=pid))], 2, os.environ, lambda *_: None)
    assert not (tmp_path / "second").exists() and not _is_alive(int(pid.read_text()))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_leaves_no_process(tmp_path, number):
    pid, code = tmp_path / "pid", tmp_path / "script.py"
    code.write_text(
        "import os; from pathlib import Path; from tuning.ablations import chains as m; m.LEAVE_SECONDS = 0.3\n"
        f"chain = m.Chain('one', [['sh', '-c', {STUBBORN.format(pid=pid)!r}]], Path({str(tmp_path / 'log')!r}))\n"
        "try:\n    m.side_by_side([chain], 1, os.environ, print)\nexcept KeyboardInterrupt:\n    print('interrupted')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen([sys.executable, code], env=environment, stdout=subprocess.PIPE, text=True)
    _until(lambda: pid.exists() and bool(pid.read_text().strip()))
    parent.send_signal(number)
    out, _ = parent.communicate(timeout=20)
    assert out == "interrupted\n" and not _is_alive(int(pid.read_text()))
