"""A run on a real job server with a token: submitted once, stopped, taken up and followed; and what is refused."""

import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from ray_head import BIN, Head, ray_head
from toy_run import metrics_of_run, tiny_run, write_scenes

from tips_ray.runs.folder import RunFolder

STEPS = 40
pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with tempfile.TemporaryDirectory(prefix="tr") as place, ray_head(Path(place), 3) as head:
        yield head


def _run(head: Head, folder: Path, *words: str, seconds: float = 300, **environment: str) -> tuple[int, str]:
    done = subprocess.run(
        [f"{BIN}/tips-ray", *words], cwd=folder, env={**head.environment, **environment}, timeout=seconds,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_run_is_submitted_once_stopped_and_taken_up_to_its_end(head, tmp_path):
    keys = {"schedule__total_steps": STEPS, "resources__workers": 1, "resources__poll_seconds": 0.5}
    config = tiny_run(tmp_path / "runs", write_scenes(tmp_path / "scenes", 32), **keys)
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json")))
    pretrain = ("--", "pretrain", "run.yaml")
    code, said = _run(head, tmp_path, "submit", *pretrain)
    assert code == 0 and "package    1 files" in said and "-1 is submitted" in said, said
    code, said = _run(head, tmp_path, "submit", *pretrain)
    assert code == 2 and "does this already" in said and "Traceback" not in said, said

    folder = RunFolder(f"{config.storage}/{config.name}")
    _wait_for_step(head, tmp_path, folder, 5)
    assert _run(head, tmp_path, "jobs", "status", "tiny")[0] == 10
    code, said = _run(head, tmp_path, "jobs", "stop", "tiny")
    assert code == 0 and "stopped, saved" in said, said
    assert _run(head, tmp_path, "jobs", "status", "tiny")[0] == 75
    stopped = metrics_of_run(folder)[-1]["step"]
    assert stopped < STEPS, "it was stopped before its end"

    code, said = _run(head, tmp_path, "submit", "--follow", *pretrain)
    assert code == 0 and f"training goes on from step {stopped}" in said and f"step {STEPS}/{STEPS}" in said, said
    assert said.count("run folder:") == 1, "each line of the log is there once"
    assert [line["step"] for line in metrics_of_run(folder)] == list(range(1, STEPS + 1))
    code, said = _run(head, tmp_path, "jobs", "list")
    assert code == 0 and said.index("-2 ") < said.index("-1 ") and "check" not in said, said


def test_a_mistake_that_only_the_cluster_sees_is_the_exit_code_and_is_not_tried_again(head, tmp_path):
    code, said = _run(head, tmp_path, "submit", "--follow", "--retries", "3", "--", "report", "nowhere")
    assert code == 2 and "failed with code 2" in said and "starts again" not in said, said


def test_a_wrong_token_and_a_label_that_no_node_has_are_told(head, tmp_path):
    (tmp_path / "token").write_text("0" * 64)
    code, said = _run(head, tmp_path, "jobs", "list", RAY_AUTH_TOKEN_PATH=str(tmp_path / "token"))
    assert code == 2 and "does not take this token" in said, said
    code, said = _run(head, tmp_path, "submit", "--driver-on", "kind=none", "--", "report", "elsewhere")
    assert code == 0, said
    job = next(word for word in said.split() if word.startswith("report-"))
    assert _run(head, tmp_path, "jobs", "status", job)[0] == 10
    code, said = _run(head, tmp_path, "jobs", "stop", job, "--now", "--wait", "2")
    assert code == 2 and "only once it starts" in said, said


def _wait_for_step(head: Head, place: Path, folder: RunFolder, step: int) -> None:
    deadline = time.monotonic() + 240
    while not (os.path.isdir(folder.uri) and folder.read_metrics() and folder.read_metrics()[-1]["step"] >= step):
        assert time.monotonic() < deadline, _run(head, place, "jobs", "logs", "tiny")[1]
        time.sleep(0.3)
