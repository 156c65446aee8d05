"""What a command becomes on a cluster: its id, checks before, new starts after a loss, never two jobs of one run."""

import json
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from dashboard import Dashboard

from cluster import environment, submission
from cluster.environment import Environment, checked
from cluster.following import follow
from cluster.job_server import JobExistsError, JobServer, ServerError, UnreachableError, connect
from cluster.package import package
from cluster.submission import Task, attempts, live, start, watch
from cluster.submission import task as task_of
from jobs.submit import command_arguments

TOWER = "{width: 96, depth: 3, num_heads: 3, ffn_hidden: 384"
RUN = f"""
name: one
storage: s3://bucket/runs
data: {{sources: [{{uri: s3://bucket/images}}]}}
image: {TOWER}, patch_size_px: 8, image_size_px: 64}}
text: {TOWER}, vocab_size: 400, max_tokens: 64}}
views: {{global_px: 64, local_px: 24}}
global_batch_images: 32
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN)
    return tmp_path


@pytest.fixture
def server(board: Dashboard, monkeypatch) -> JobServer:
    monkeypatch.setattr(submission, "FIRST_WAIT_SECONDS", 0.0)
    monkeypatch.setattr(submission, "connect", lambda address, seconds: connect(address, 1))
    return connect(board.address, 1)


def task(words: Sequence[str]) -> Task:
    return task_of(words, command_arguments(words))


def _start(server: JobServer, words: tuple[str, ...] = ("pretrain", "run.yaml"), least: int = 1) -> str:
    made = task(words)
    with tempfile.TemporaryDirectory() as folder:
        package(made.files, []).write(Path(folder))
        return start(server, made, Path(folder), Environment("image"), {}, least)


def test_a_run_has_one_stem_however_it_is_written_and_another_storage_another():
    stem = task(["pretrain", "run.yaml"]).stem
    assert stem.startswith("one-") and len(stem) == len("one-") + 8
    assert task(["pretrain", "run.yaml", "seed=3"]).stem == stem
    Path("copy.yaml").write_text(RUN)
    assert task(["pretrain", "--quiet", "copy.yaml"]).stem == stem
    assert task(["pretrain", "run.yaml", "storage=s3://other/runs"]).stem != stem
    assert task(["pretrain", "run.yaml", "name=two"]).stem.startswith("two-")


def test_another_command_is_the_same_job_with_the_same_words():
    assert task(["caption", "run.yaml"]).stem == task(["caption", "run.yaml"]).stem
    assert task(["caption", "run.yaml"]).stem != task(["caption", "run.yaml", "seed=1"]).stem
    assert task(["caption", "run.yaml"]).stem.startswith("caption-")


def test_the_driver_is_supervised_on_the_cluster_once():
    assert task(["pretrain", "run.yaml"]).entrypoint == "tips-ray pretrain run.yaml --supervise"
    assert task(["pretrain", "--supervise", "run.yaml"]).entrypoint == "tips-ray pretrain --supervise run.yaml"
    assert task(["caption", "run.yaml", "views.global_scale=[0.5, 1]"]).entrypoint == (
        "tips-ray caption run.yaml 'views.global_scale=[0.5, 1]'"
    )


def test_files_that_configs_name_travel_too():
    Path("deep").mkdir()
    Path("deep/sweep.yaml").write_text("run: own.yaml\nother: nowhere.yaml\nnote: |\n  run.yaml\n  and more\n")
    Path("deep/own.yaml").write_text(RUN)
    Path("deep/own.yaml").write_text("captions: {tokenizer: words.model}\nbroken: /etc/hostname\n")
    Path("deep/words.model").write_text("")
    Path("odd.yaml").write_text("a: [1")
    found = task(["compare", "deep/sweep.yaml", "odd.yaml", "--csv=[{uri: deep/words.model}]"]).files
    assert set(map(str, found)) == {"deep/sweep.yaml", "deep/own.yaml", "deep/words.model", "odd.yaml"}


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("pretrain", "nofile.yaml"), "nofile.yaml"),
        (("pretrain", "broken.yaml"), "broken.yaml"),
        (("pretrain", "run.yaml", "--nope"), "does not take these words: .*--nope"),
        (("evaluate", "s3://b/runs/x"), r"--output \(out/evaluation\) would be a folder of the job"),
        (("ablate",), r"--output \(out/ablation\)"),
        (("embed", "s3://b/runs/x", "s3://b/images", "out/e"), r"OUT \(out/e\)"),
        (("export", "s3://b/runs/x", "out/f", "--to", "timm"), r"OUT \(out/f\)"),
        (("caption", "run.yaml", "storage=out/runs"), r"storage \(out/runs\)"),
        (("pretrain", "run.yaml", "tracking.mlflow_uri=https://me:secret@host"), "holds a key or a password"),
    ],
)
def test_mistakes_are_told_here_and_not_by_the_cluster(words, sentence):
    Path("broken.yaml").write_text("a: [1")
    with pytest.raises(ValueError, match=sentence):
        task(words)


def test_the_parser_says_which_file_is_the_config():
    Path("first.yaml").write_text("a: 1\n")
    assert task(["pretrain", "--log-format=json", "run.yaml", "tracking.tags={x: first.yaml}"]).name == "one"
    assert task(["pretrain", "run.yaml", "storage=s3://bucket/runs/"]).stem == task(["pretrain", "run.yaml"]).stem


@pytest.mark.parametrize("storage", ["out/runs", "runs"])
def test_results_that_would_be_deleted_with_the_job_are_refused(storage):
    with pytest.raises(ValueError, match=rf"storage \({storage}\) would be a folder of the job"):
        task(["pretrain", "run.yaml", f"storage={storage}"])
    assert task(["pretrain", "run.yaml", "storage=/shared/runs"]).place == "/shared/runs/one"


def test_a_job_says_whose_it_is_and_carries_the_package(server, board):
    job_id = _start(server)
    job = board.jobs[job_id]
    assert job_id == f"{task(['pretrain', 'run.yaml']).stem}-1" and len(job_id) <= 63
    assert job["metadata"] | {"tips_ray": ""} == {
        "tips_ray": "", "name": "one", "place": "s3://bucket/runs/one", "command": "pretrain", "attempt": "1"
    }  # fmt: skip
    assert job["runtime_env"]["working_dir"].startswith("gcs://_ray_pkg_") and "env_vars" not in job["runtime_env"]
    [content] = board.packages.values()
    assert b"run.yaml" in content


def test_a_live_job_is_found_and_attempts_are_counted_over_lost_ones(server, board):
    stem = task(["pretrain", "run.yaml"]).stem
    first = _start(server)
    found = live(server, stem)
    assert found is not None and found.submission_id == first
    board.jobs[first]["status"] = "FAILED"
    assert live(server, stem) is None
    assert _start(server) == f"{stem}-2"
    board.jobs.clear()
    assert _start(server, least=3) == f"{stem}-3", "the head was started anew; the client has counted"
    assert [job.submission_id for job in attempts(server, stem)] == [f"{stem}-3"]


def test_of_two_submits_at_once_one_is_told(server, board):
    _start(server)
    with pytest.raises(JobExistsError, match="does this already"):
        _start(server)
    board.jobs[_id(board)]["metadata"] = {}  # the other submit is not seen yet, and the server refuses the id
    with pytest.raises(JobExistsError, match="has a job with this id"):
        _start(server)


def _id(board: Dashboard) -> str:
    return next(iter(board.jobs))


def test_of_two_followers_one_starts_the_job_again_and_the_other_follows_it(server, board):
    first = _start(server)
    board.jobs[first] |= {"status": "FAILED", "driver_exit_code": 1}
    other = _start(server, least=2)
    assert watch(server, first, 1, lambda server, last: _start(server, least=last + 1)) == 0
    assert list(board.jobs) == [first, other], "nothing else was started"


def test_a_cluster_that_was_away_too_long_is_asked_again_and_its_job_goes_on(server, board, monkeypatch):
    first = _start(server)
    asked: list[str] = []

    def away_once(*arguments: Any) -> Any:
        asked.append("x")
        if len(asked) == 1:
            raise UnreachableError("it did not answer for 600 s")
        return follow(*arguments)

    monkeypatch.setattr(submission, "follow", away_once)
    assert watch(server, first, 1, lambda server, last: _start(server, least=last + 1)) == 0
    assert list(board.jobs) == [first]


class _Ends:
    """Lets each new job end with the next of `codes`; None: the cluster forgets it."""

    def __init__(self, server: JobServer, board: Dashboard, codes: list[int | None]) -> None:
        self.server, self.board, self.codes, self.started = server, board, codes, []

    def __call__(self, server: JobServer, last: int) -> str:
        job_id, code = _start(server, least=last + 1), self.codes.pop(0)
        self.started.append(job_id.rpartition("-")[2])
        self.board.jobs[job_id]["driver_exit_code"] = code
        if code is None:
            self.board.jobs.clear()
        return job_id


@pytest.mark.parametrize(
    ("codes", "retries", "code", "started"),
    [
        ([0], 3, 0, ["1"]),
        ([1, -9, 0], 3, 0, ["1", "2", "3"]),
        ([1, 1, 1], 1, 1, ["1", "2"]),
        ([2], 3, 2, ["1"]),
        ([75], 3, 75, ["1"]),
        ([None, 0], 1, 0, ["1", "2"]),
    ],
)
def test_a_lost_job_is_started_again_and_one_that_would_fail_again_is_not(server, board, codes, retries, code, started):
    ends = _Ends(server, board, codes)
    assert watch(server, ends(server, 0), retries, ends) == code
    assert ends.started == started


def test_a_job_that_the_cluster_has_lost_is_told_with_the_cure(server, board):
    ends = _Ends(server, board, [None])
    with pytest.raises(ServerError, match="lost the job .* the same command starts the run again"):
        watch(server, ends(server, 0), 0, ends)


def _cluster_says(board: Dashboard, monkeypatch: Any, **facts: Any) -> None:
    own = {"python": "3.11.7", "tips_ray": version("tips-ray"), "ray": version("ray"), "command": "x", "uv": "uv"}

    def submit(server: JobServer, job_id: str, entrypoint: str, **options: Any) -> str:
        board.add(job_id, "SUCCEEDED", metadata=options.get("metadata"), end_time=int(1000 * time.time()))
        board.logs[job_id] = f"a line of the cluster\ntips_ray {json.dumps(own | facts)}\n"
        return job_id

    monkeypatch.setattr(JobServer, "submit", submit)


def test_equal_versions_pass_and_are_told(server, board, monkeypatch, capsys):
    _cluster_says(board, monkeypatch)
    assert checked(server, "image") == Environment("image")
    assert f"ray {version('ray')}, tips-ray {version('tips-ray')}" in capsys.readouterr().out
    assert checked(server, "image") and len(board.jobs) == 2
    for job in board.jobs.values():
        job["end_time"] = 1
    assert checked(server, "image") and len(board.jobs) == 1, "old checks are deleted"


@pytest.mark.parametrize(
    ("facts", "sentence"),
    [
        ({"ray": "2.50.1"}, r"the cluster has Ray 2\.50\.1, here is .* install ray==2\.50\.1 here"),
        ({"tips_ray": "9.9"}, r"the cluster has tips-ray 9\.9, here is"),
        ({"tips_ray": None}, r"Python has no tips-ray: use an image"),
        ({"command": None}, r"Python has no tips-ray"),
    ],
)
def test_versions_that_do_not_go_together_are_refused_before_anything_travels(
    server, board, monkeypatch, facts, sentence
):
    _cluster_says(board, monkeypatch, **facts)
    with pytest.raises(ServerError, match=sentence):
        checked(server, "image")
    assert not board.packages


def test_uv_takes_the_clusters_python_and_a_lock_with_its_ray(server, board, monkeypatch):
    _cluster_says(board, monkeypatch, tips_ray=None, command=None)
    with pytest.raises(ServerError, match="needs pyproject.toml and uv.lock"):
        checked(server, "uv")
    Path("pyproject.toml").write_text("")
    Path("uv.lock").write_text('[[package]]\nname = "ray"\nversion = "2.1.0"\n')
    with pytest.raises(ServerError, match=rf"uv.lock has Ray 2\.1\.0, the cluster {version('ray')}"):
        checked(server, "uv")
    Path("uv.lock").write_text(f'[[package]]\nname = "ray"\nversion = "{version("ray")}"\n')
    found = checked(server, "uv")
    assert found.command("tips-ray x") == "uv run --frozen --no-dev --python 3.11.7 tips-ray x"


def test_a_cluster_without_uv_is_refused_for_env_uv(server, board, monkeypatch):
    _cluster_says(board, monkeypatch, uv=None)
    with pytest.raises(ServerError, match="has no uv"):
        checked(server, "uv")


def test_a_job_that_never_starts_is_given_up_with_the_reason(server, board, monkeypatch):
    monkeypatch.setattr(environment, "CHECK_SECONDS", 0.3)
    board.instead["POST /api/jobs/"] = [lambda: None]
    monkeypatch.setattr(
        JobServer, "submit", lambda server, job_id, *_, **__: board.add(job_id, "PENDING", message="no CPU")
    )
    with pytest.raises(ServerError, match=r"has not started a small job in 0 s: no CPU"):
        checked(server, "image")


def test_a_cluster_without_python_is_told(server, board, monkeypatch):
    monkeypatch.setattr(
        JobServer, "submit", lambda server, job_id, *_, **__: board.add(job_id, "FAILED", message="sh: no python")
    )
    with pytest.raises(ServerError, match="runs no Python: .*no python"):
        checked(server, "image")


def test_data_of_this_machine_are_refused_before_a_cluster_misses_them():
    with pytest.raises(ValueError, match=r"data.sources.0.uri \(photos\) is a path from this folder, and data do not"):
        task(["pretrain", "run.yaml", "data.sources=[{uri: photos}]"])
    assert task(["pretrain", "run.yaml", "data.sources=[{uri: /data/photos}]"]).name == "one"
