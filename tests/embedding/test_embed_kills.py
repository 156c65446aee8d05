"""`tips-ray embed` writes every row once, even if it is killed at any moment or loses an actor."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from processes import command_of, family
from toy_captions import pids, until
from toy_embedding import embedding_config, rows_of, write_place

from tips_ray.launch.embedding import embed_all, embed_inputs

pytestmark = pytest.mark.slow
ROWS = 240


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    return write_place(tmp_path_factory.mktemp("embed"), ROWS)


def _files(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (out / "embeddings").glob("*.parquet")}


def test_a_job_that_is_killed_goes_on_where_it_stopped(place):
    out = place / "killed"
    command = [sys.executable, "-m", "jobs.cli", "embed", f"{place}/model", f"{place}/data", str(out), "chunk_rows=4"]
    job = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    until(lambda: len(_files(out)) >= 3)
    time.sleep(random.uniform(0, 0.5))
    workers = [pid for pid in family(job.pid) if "Agent" not in command_of(pid)]  # Ray's agents stay a minute
    job.kill()
    job.wait()
    until(lambda: not any(map(command_of, workers)), 60)
    before = _files(out)
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    after = _files(out)
    assert 3 <= len(before) < 60 and f"{4 * len(before)} have their embeddings" in again.stdout
    assert len(after) == 60 and {path: after[path] for path in before} == before
    assert [row["sample_id"] for row in rows_of(out)] == list(range(ROWS))


def test_an_interrupted_job_says_in_one_sentence_how_to_go_on(place):
    out = place / "interrupted"
    command = [sys.executable, "-m", "jobs.cli", "embed", f"{place}/model", f"{place}/data", str(out), "chunk_rows=4"]
    job = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    until(lambda: len(_files(out)) >= 3)
    os.killpg(job.pid, signal.SIGINT)
    _, told = job.communicate(timeout=120)
    lines = [line for line in told.splitlines() if "core_worker.cc" not in line]  # Ray's remark on actor pools
    assert (job.returncode, lines) == (130, ["interrupted; the same command goes on where it stopped"])


def test_an_actor_that_is_killed_leaves_no_row_out(place, cluster):
    inputs, index = embed_inputs(str(place / "model"), embedding_config(f"{place}/data"), str(place / "lost"))
    made = []
    thread = threading.Thread(
        target=lambda: made.append(embed_all(inputs, inputs.folder.missing(index, inputs.layout.row_bytes), print))
    )
    thread.start()
    until(lambda: len(_files(place / "lost")) >= 5 and pids("EmbedActor"))
    before = _files(place / "lost")
    os.kill(pids("EmbedActor").pop(), signal.SIGKILL)
    thread.join(240)
    after = _files(place / "lost")
    assert made and {path: after[path] for path in before} == before
    assert [row["sample_id"] for row in rows_of(place / "lost")] == list(range(ROWS))
