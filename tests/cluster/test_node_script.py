"""`node.sh` with stand-ins for `ray` and `python`: who waits for whom, and what the exit code says."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cluster.tasks import NODE_SCRIPT

pytestmark = pytest.mark.heavy
RAY = f"""#!/usr/bin/env bash
echo "$@" >> "$SEEN/ray-$TIPS_RANK"
[ -e "$SEEN/broken" ] && echo "no port" && exit 1
exec {sys.executable} -c '
import os, socket, sys, time
if "--head" in sys.argv:
    listening = socket.create_server(("127.0.0.1", int(os.environ["TIPS_PORT"])))
print("Ray runtime started.", flush=True)
time.sleep(60)
' "$@"
"""
PYTHON = '#!/usr/bin/env bash\necho "$@" >> "$SEEN/waited"\n'


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@pytest.fixture
def node(tmp_path):
    """Starts a node; returns its process."""
    for name, text in {"ray": RAY, "python": PYTHON}.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    given = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SEEN": str(tmp_path), "TIPS_NODES": "2", "TIPS_HEAD": "127.0.0.1"}
    given |= {
        "TIPS_PORT": str(free_port()),
        "TIPS_POLL_SECONDS": "0.1",
        "TIPS_START_SECONDS": "20",
        "TMPDIR": str(tmp_path),
    }
    started = []

    def start(rank: int, command: str = "exit 0", script: Path = NODE_SCRIPT, **more: str) -> subprocess.Popen:
        environment = {**given, "TIPS_RANK": str(rank), **more}
        arguments = ["bash", str(script), "bash", "-c", command]
        with open(tmp_path / f"said-{rank}", "w") as said:
            started.append(subprocess.Popen(arguments, env=environment, stderr=said, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def await_file(path: Path) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert path.exists()


@pytest.mark.parametrize(("code", "wanted"), [(0, 0), (1, 1), (75, 0)])
def test_the_head_ends_as_its_command_does_but_a_run_that_was_asked_to_stop_is_no_failure(node, code, wanted):
    assert node(0, f"exit {code}").wait(30) == wanted


def test_a_new_version_of_the_script_does_not_change_a_node_that_runs(node, tmp_path):
    (tmp_path / "node.sh").write_text(NODE_SCRIPT.read_text())
    command = 'for i in {1..5000}; do echo "exit 99"; done > "$SEEN/node.sh"; exit 3'
    assert node(0, command, script=tmp_path / "node.sh").wait(30) == 3


def test_the_command_runs_on_the_head_after_the_nodes_were_awaited(node, tmp_path):
    command = 'cat "$SEEN/waited" > "$SEEN/before"; echo "$RAY_ADDRESS" > "$SEEN/address"'
    head = node(0, command, TIPS_CPUS="28", TIPS_GPUS="8", TIPS_RESOURCES='{"train": 8}', TIPS_LABELS="kind=train")
    assert head.wait(30) == 0
    address = (tmp_path / "address").read_text().strip()
    assert (tmp_path / "before").read_text() == f"- {address} 2 20\n"
    port = address.rpartition(":")[2]
    options = '--num-cpus=28 --num-gpus=8 --resources={"train": 8} --labels=kind=train'
    assert (tmp_path / "ray-0").read_text() == f"start --block --disable-usage-stats {options} --head --port={port}\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_the_head_reaches_the_run_once_and_the_code_says_saved(node, tmp_path, number):
    saves = 'trap "echo saved >> $SEEN/saved; exit 75" TERM; touch "$SEEN/runs"; while :; do sleep 0.1; done'
    head = node(0, saves)
    await_file(tmp_path / "runs")
    os.kill(head.pid, number)
    assert head.wait(30) == 75 and (tmp_path / "saved").read_text() == "saved\n"


def test_a_signal_while_nodes_are_awaited_ends_without_the_run(node, tmp_path):
    (tmp_path / "python").write_text('#!/usr/bin/env bash\ntouch "$SEEN/waiting"\nexec sleep 60\n')
    head = node(0, 'touch "$SEEN/ran"')
    await_file(tmp_path / "waiting")
    os.kill(head.pid, signal.SIGTERM)
    assert head.wait(30) == 75 and not (tmp_path / "ran").exists()


def test_another_node_waits_for_the_head_joins_it_and_leaves_when_it_has_ended(node, tmp_path):
    other = node(1)
    head = node(0, 'while ! [ -e "$SEEN/ray-1" ]; do sleep 0.05; done; exit 3')
    assert head.wait(30) == 3 and other.wait(30) == 0
    assert "--address=127.0.0.1:" in (tmp_path / "ray-1").read_text()


def test_a_node_that_is_taken_away_says_so(node, tmp_path):
    head = node(0, "sleep 60")
    other = node(1)
    await_file(tmp_path / "ray-1")
    os.kill(other.pid, signal.SIGTERM)
    assert other.wait(30) == 75 and head.poll() is None


def test_a_node_gives_up_where_nobody_is_the_head(node, tmp_path):
    assert node(1, TIPS_START_SECONDS="0").wait(30) == 1
    assert "has not answered for 0 s" in (tmp_path / "said-1").read_text()


@pytest.mark.slow
@pytest.mark.variant
def test_ray_that_does_not_start_is_tried_five_times_and_its_words_are_shown(node, tmp_path):
    (tmp_path / "broken").touch()
    assert node(0).wait(60) == 1
    told = (tmp_path / "said-0").read_text()
    assert (tmp_path / "ray-0").read_text().count("\n") == 5 and "no port" in told and "does not start" in told
