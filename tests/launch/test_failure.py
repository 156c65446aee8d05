"""Failed training as its user sees it; the errors are those that Ray raises."""

import signal

import pytest
from ray.exceptions import RayTaskError
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError, WorkerHealthCheckFailedError
from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

from jobs import cli
from tips_ray import memory_kills, storage
from tips_ray.errors import MOST_CHARACTERS, RunFailedError, RunInterrupted, described, root_cause
from tips_ray.launch import failure
from tips_ray.launch.failure import failures_as_sentences
from tips_ray.launch.on_ray import FAILURES
from tips_ray.runs.folder import RunFolder

BAD_ROWS = ValueError("data.max_bad_fraction (0.01) is exceeded: 3 of 8 rows were bad; mend the data")
ECHO = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:1234")


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(str(tmp_path / "run"))
    folder.log_metrics(7, {"loss/total": 1.0})
    return folder


def _failed(folder: RunFolder, error: Exception) -> str:
    with pytest.raises(RunFailedError) as caught, failures_as_sentences(folder, FAILURES):
        raise error
    assert caught.value.__suppress_context__
    return str(caught.value)


def test_the_worker_that_failed_first_is_heard_and_not_its_echo(folder):
    error = WorkerGroupError("Traceback of both", {0: ECHO, 1: BAD_ROWS})
    assert root_cause(error) is BAD_ROWS
    text = _failed(folder, error)
    assert text.startswith(
        f"training stopped at step 7: {BAD_ROWS}; once that is mended, the same command starts again"
    )


def test_only_echoes_are_better_than_nothing():
    assert root_cause(WorkerGroupError("", {0: ECHO, 1: ECHO})) is ECHO


def test_an_error_of_a_function_that_ray_data_called_is_found_in_its_text():
    """Ray 2.60 hands on only its own error; a real cluster's is met in tests/curation/test_curate.py."""
    above = 'ray::MapBatches(work)() (pid=1)\n  File "x.py", line 1, in work\n    raise StorageError(text)\n'
    below = "\n\nThe above exception was the direct cause of the following exception:\n\nUserCodeException: UDF failed"

    class RayTaskErrorOfUserCodeException(Exception):
        pass

    ours = RayTaskErrorOfUserCodeException(f"{above}tips_ray.storage.errors.StorageError: s3://b/x: gone: away{below}")
    assert described(ours) == "s3://b/x: gone: away"
    other = RayTaskErrorOfUserCodeException(f"{above}KeyError: 'a'{below}")
    assert described(other) == "RuntimeError: KeyError: 'a'"


def test_an_error_of_a_data_task_is_found_in_its_worker():
    task = RayTaskError("read", "Traceback", storage.StorageError("s3://b/x: the store is busy"))
    assert str(root_cause(WorkerGroupError("", {0: task.as_instanceof_cause()}))) == "s3://b/x: the store is busy"


def test_a_worker_that_died_is_called_so(folder):
    from ray.exceptions import ActorDiedError

    lost = WorkerHealthCheckFailedError("health", failure=ActorDiedError())
    assert "a worker process was killed or crashed (" in _failed(folder, WorkerGroupError("", {0: lost}))


def _dead_controller(words: str) -> Exception:
    from ray.core.generated.common_pb2 import ActorDiedErrorContext  # pyright: ignore[reportAttributeAccessIssue]
    from ray.exceptions import ActorDiedError

    return ActorDiedError(ActorDiedErrorContext(class_name="TrainController", actor_id=bytes(16), error_message=words))


def test_a_controller_that_died_is_told_from_a_worker_and_rays_guesses_are_left_out(folder):
    words = (
        "Worker exit type: SYSTEM_ERROR. There are some potential root causes. (1) The process is killed by OOM killer"
    )
    text = _failed(folder, _dead_controller(words))
    assert "step 7: the run's controller was killed or crashed (" in text and "SYSTEM_ERROR)" in text
    assert "OOM" not in text and "memory" not in text


def test_memory_is_blamed_where_rays_monitor_ended_a_process(folder):
    text = _failed(folder, _dead_controller("1 worker(s) were killed due to the node running low on memory."))
    assert "step 7: memory ran out on a node, and Ray ended the run's controller (" in text


def test_memory_is_blamed_where_the_kernel_ended_a_process_meanwhile(folder, monkeypatch):
    counts = iter([3, 5])
    monkeypatch.setattr(memory_kills, "memory_kills", lambda: next(counts))
    monkeypatch.setattr(failure, "memory_kills", memory_kills.memory_kills)
    told = "this machine ran out of memory meanwhile, and its kernel ended 2 processes; once that is mended"
    assert told in _failed(folder, _dead_controller("SYSTEM_ERROR"))


def test_a_cluster_that_is_gone_is_told_from_a_process_that_died(folder):
    from ray.exceptions import ActorUnavailableError

    gone = ActorUnavailableError("Socket closed", bytes(16))
    assert "step 7: a process of the cluster does not answer any more (" in _failed(folder, gone)


def test_an_error_of_the_controller_names_its_kind(folder):
    text = _failed(folder, ControllerError(WorkerGroupStartupTimeoutError(2)))
    assert "step 7: WorkerGroupStartupTimeoutError: The worker group startup timed out" in text


def test_the_next_step_is_that_of_the_newest_checkpoint(folder):
    manifest = '{"version": 2, "step": 5, "bad_rows": 0, "files": {}}'
    storage.write_text(storage.join(folder.uri, "checkpoints", "step-00000005", "manifest.json"), manifest)
    assert "the same command resumes from step 5" in _failed(folder, WorkerGroupError("", {0: BAD_ROWS}))


def test_the_whole_traceback_is_in_a_file_of_its_own(folder):
    for number in (1, 2):
        uri = storage.join(folder.uri, "errors", f"attempt-000{number}.txt")
        assert _failed(folder, WorkerGroupError("Traceback of the worker", {0: BAD_ROWS})).endswith(uri)
        assert "Traceback of the worker" in storage.read_text(uri)


def test_the_cause_is_told_also_where_the_storage_is_away(folder, monkeypatch):
    def away(*arguments):
        raise storage.StorageError("s3://b: cannot be reached", may_pass=True)

    for name in ("list_names", "list_folders", "create_text"):
        monkeypatch.setattr(storage, name, away)
    assert _failed(folder, WorkerGroupError("", {0: BAD_ROWS})) == (
        f"training stopped: {BAD_ROWS}; once that is mended, the same command resumes from the newest checkpoint; its "
        "traceback is not kept: s3://b: cannot be reached"
    )


def test_what_is_not_a_failed_training_passes_through(folder):
    with pytest.raises(KeyError), failures_as_sentences(folder, FAILURES):
        raise KeyError("ours")


@pytest.mark.parametrize("stop", [SystemExit(0), KeyboardInterrupt()])
def test_ctrl_c_is_an_interruption_and_the_handler_is_put_back(folder, stop):
    before = signal.getsignal(signal.SIGINT)
    with (
        pytest.raises(RunInterrupted, match="interrupted at step 7; the same command"),
        failures_as_sentences(folder, FAILURES),
    ):
        signal.signal(signal.SIGINT, lambda *_: None)  # as Ray Train does in fit
        raise stop
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (RunFailedError("training stopped\n at step 7"), 1, "error: training stopped at step 7\n"),
        (RunInterrupted("interrupted at step 7"), 130, "interrupted at step 7\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
        (OSError(28, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
    ],
)
def test_every_end_has_its_line_and_its_exit_code(error, code, line, monkeypatch, capsys):
    def run(arguments):
        raise error

    monkeypatch.setattr("jobs.report.run", run)
    assert cli.main(["report", "x"]) == code
    assert capsys.readouterr().err == line


def test_a_long_cause_is_cut(folder):
    assert len(_failed(folder, WorkerGroupError("", {0: ValueError("x" * 9999)}))) < MOST_CHARACTERS + 400


def test_memory_is_not_blamed_for_an_import_that_fails():
    from ray.exceptions import ActorDiedError, RayTaskError

    of_start = RayTaskError("C.__init__", "Traceback:\nImportError: no module x", ImportError("no module x"))
    died = described(ActorDiedError(of_start))
    assert died == "a process of the run could not start: ImportError: no module x"
