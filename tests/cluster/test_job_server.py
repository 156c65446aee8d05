"""A job server that refuses, does not answer or answers nonsense is told in one sentence with its cure."""

import asyncio
import os
import socket
import time

import pytest
from dashboard import answer

from cluster import following, job_server
from cluster.following import exit_code, follow
from cluster.job_server import JobExistsError, ServerError, UnknownJobError, UnreachableError, connect


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (answer(401, "Unauthorized"), r"wants a token: set RAY_AUTH_MODE=token"),
        (answer(403, "no"), r"does not take this token: set RAY_AUTH_MODE=token"),
        (answer(404), r"is no dashboard of Ray with a job server"),
        (answer(200, "<html>"), r"is no dashboard of Ray"),
        (answer(200, "{}"), r"is no dashboard of Ray"),
        (answer(200, "[]"), r"is no dashboard of Ray"),
        (answer(200, "null"), r"is no dashboard of Ray"),
    ],
)
def test_what_is_no_open_job_server_is_refused_at_once(board, given, sentence):
    board.instead["GET /api/version"] = [given]
    begun = time.monotonic()
    with pytest.raises(ServerError, match=sentence):
        connect(board.address, 30)
    assert time.monotonic() - begun < 20, "it does not wait for what will not change"


def test_a_server_that_starts_is_waited_for_and_the_wait_is_told_once(board, capsys):
    board.instead["GET /api/version"] = [answer(503, "no healthy upstream")] * 3 + [
        answer(200, '{"ray_version": "2.60.0"}')
    ]
    assert connect(board.address, 30).version == "2.60.0"
    assert capsys.readouterr().out.count("does not answer yet") == 1


def test_nobody_at_the_address_is_told_with_the_cure(monkeypatch):
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(UnreachableError, match=r"did not answer for 0 s \(Connection refused\).*kubectl port-forward"):
        connect(place, 0.2)


def test_a_server_that_takes_the_question_and_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(job_server, "REQUEST_SECONDS", 0.2)
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UnreachableError, match="no answer in 0.2 s"):
        connect(f"http://127.0.0.1:{silent.getsockname()[1]}", 0.1)


def test_the_address_that_is_given_counts_more_than_the_variable(board, monkeypatch):
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:9")
    assert connect(board.address, 5).address == board.address
    assert os.environ["RAY_API_SERVER_ADDRESS"] == "http://127.0.0.1:9"


def test_addresses_of_other_kinds_are_refused(monkeypatch):
    with pytest.raises(ServerError, match="is of Ray Client"):
        connect("ray://host:10001", 1)
    with pytest.raises(ServerError, match="is no address"):
        connect("http://host:port", 0)


def test_token_mode_without_a_token_is_told_before_anything_is_sent(board, monkeypatch, tmp_path):
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(ServerError, match="there is no token"):
        connect(board.address, 1)
    assert not board.asked


def test_an_agent_that_starts_is_unreachable_and_other_refusals_are_final(board):
    server = connect(board.address, 1)
    board.instead["POST /api/jobs/"] = [answer(500, "No available agent to submit job, please try again later.")]
    with pytest.raises(UnreachableError, match="No available agent"):
        server.submit("a-1", "x")
    board.instead["POST /api/jobs/"] = [answer(500, "Traceback\nRuntimeError: out of disk")]
    with pytest.raises(ServerError, match="answers with status 500: RuntimeError: out of disk"):
        server.submit("a-1", "x")
    board.instead["POST /api/jobs/"] = [answer(413, "too large")]
    with pytest.raises(ServerError, match="takes no package of this size"):
        server.submit("a-1", "x")


def test_an_id_that_is_taken_and_one_that_is_unknown_have_errors_of_their_own(board):
    server = connect(board.address, 1)
    server.submit("a-1", "x")
    with pytest.raises(JobExistsError):
        server.submit("a-1", "x")
    with pytest.raises(UnknownJobError, match="jobs list"):
        server.job("b-1")


@pytest.mark.parametrize("said", ["{}", '{"data": {"result": null}}', "[]", "<html>"])
def test_only_living_nodes_count_and_none_where_the_dashboard_does_not_tell_them(board, said):
    server = connect(board.address, 1)
    assert server.nodes() == [{"CPU": 4.0}]
    for status in (200, 404, 500):
        board.instead["GET /api/v0/nodes"] = [answer(status, said)]
        assert server.nodes() == []


def test_an_answer_of_another_form_is_told_in_a_sentence(board):
    server = connect(board.address, 1)
    for key, ask in (("GET /api/jobs/", server.jobs), ("GET /api/jobs/a-1", lambda: server.job("a-1"))):
        board.instead[key] = [answer(200, '{"a": 1}')]
        with pytest.raises(ServerError, match="is no dashboard of Ray"):
            ask()


def test_numbers_in_a_refusal_are_no_status_and_a_head_without_its_store_is_waited_for(board):
    server = connect(board.address, 1)
    board.instead["POST /api/jobs/"] = [answer(500, "Traceback\nValueError: no node with label one-15035678-1\n.\n")]
    with pytest.raises(ServerError, match="no node with label one-15035678-1") as error:
        server.submit("a-1", "x")
    assert not isinstance(error.value, UnreachableError)
    board.instead["GET /api/jobs/a-1"] = [answer(500, "Traceback\nRpcError: UNAVAILABLE: failed to connect to GCS")]
    with pytest.raises(UnreachableError, match=f"{board.address}: .*UNAVAILABLE"):
        server.job("a-1")


def test_a_log_that_cannot_be_written_is_no_lost_connection(board):
    board.add("a-1", driver_exit_code=0)
    board.logs["a-1"] = "all of it"

    def full(text: str) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        follow(connect(board.address, 1), "a-1", full)


def test_a_log_over_lost_connections_is_written_once(board, capsys):
    board.add("a-1", driver_exit_code=0)
    board.logs["a-1"] = "one\ntwo\nthree\nend\n"
    board.pieces = [["one\ntw"], [], ["one\n", "two\nth"]]
    written: list[str] = []
    job = follow(connect(board.address, 1), "a-1", written.append)
    assert "".join(written) == "one\ntwo\nthree\nend\n" and exit_code(job) == 0
    assert capsys.readouterr().out.count("connection was lost") == 1


def test_a_log_that_is_lost_for_good_leaves_the_jobs_exit_code(board, capsys):
    board.add("a-1", driver_exit_code=3)
    board.instead["GET /api/jobs/a-1/logs/tail"] = [
        answer(500),
        lambda: board.jobs["a-1"].update(status="FAILED"),
    ]
    board.instead["GET /api/jobs/a-1/logs"] = [answer(500, "gone")]
    assert exit_code(follow(connect(board.address, 1), "a-1", lambda text: None)) == 3
    assert "the end of the log is not to be had" in capsys.readouterr().out


def test_a_connection_that_died_unnoticed_is_left_for_a_new_one(board, monkeypatch):
    monkeypatch.setattr(following, "SILENT_SECONDS", 0.2)
    board.add("a-1")
    board.logs["a-1"] = "all of it"

    async def never(job_id: str):
        yield "all"
        board.jobs["a-1"]["status"] = "SUCCEEDED"
        await asyncio.sleep(60)

    server = connect(board.address, 1)
    monkeypatch.setattr(server, "tail", never)
    written: list[str] = []
    begun = time.monotonic()
    follow(server, "a-1", written.append)
    assert "".join(written) == "all of it" and time.monotonic() - begun < 30


@pytest.mark.parametrize(
    ("status", "driver", "code"),
    [
        ("SUCCEEDED", 0, 0),
        ("FAILED", 2, 2),
        ("FAILED", 75, 75),
        ("FAILED", None, 1),
        ("FAILED", -9, 1),
        ("STOPPED", None, 75),
    ],
)
def test_the_exit_code_is_that_of_the_jobs_command(board, status, driver, code):
    board.add("a-1", status, driver_exit_code=driver)
    assert exit_code(connect(board.address, 1).job("a-1")) == code


def test_why_a_job_does_not_start_is_told_once(board, monkeypatch, capsys):
    monkeypatch.setattr(following, "PENDING_SECONDS", 0.0)
    monkeypatch.setattr(following, "POLL_SECONDS", 0.01)
    board.add("a-1", "PENDING", message="waiting for\nresources")
    waits = [lambda: None] * 4
    board.instead["GET /api/jobs/a-1"] = [*waits, lambda: board.jobs["a-1"].update(status="RUNNING"), lambda: None]
    follow(connect(board.address, 1), "a-1", lambda text: None)
    assert capsys.readouterr().out.count("pending    waiting for resources") == 1
