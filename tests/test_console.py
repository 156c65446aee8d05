"""What a command tells, as lines, as JSON and not at all."""

import json

import pytest

from jobs.cli import main
from tips_ray import console


@pytest.fixture(autouse=True)
def lines_again():
    yield
    console.speak("lines")


def test_lines_go_to_stdout_and_errors_to_stderr(capsys):
    console.tell("check", "data       8 rows", check="data")
    console.tell_error("no such file", exit_code=2)
    told = capsys.readouterr()
    assert (told.out, told.err) == ("data       8 rows\n", "error: no such file\n")


def test_json_is_one_object_per_line_and_has_no_nan(capsys):
    console.speak("json")
    console.tell("progress", "two\nlines", step=3, metrics={"loss/total": float("nan"), "list": [1.5, float("inf")]})
    console.tell_error("no such file", exit_code=2)
    told = capsys.readouterr()
    first, second = map(json.loads, told.out.splitlines())
    assert first.pop("time") <= second.pop("time") and told.err == ""
    metrics = {"loss/total": None, "list": [1.5, None]}
    assert first == {"kind": "progress", "text": "two lines", "step": 3, "metrics": metrics}
    assert second == {"kind": "error", "text": "no such file", "exit_code": 2}


def test_quiet_leaves_errors_alone(capsys):
    console.speak("quiet")
    console.tell("check", "data       8 rows")
    console.tell_error("no such file")
    told = capsys.readouterr()
    assert (told.out, told.err) == ("", "error: no such file\n")


def test_pretrain_tells_its_errors_as_json_where_asked_and_the_next_command_is_plain_again(tmp_path, capsys):
    missing = str(tmp_path / "none.yaml")
    assert main(["pretrain", missing, "--log-format", "json"]) == 2
    told = json.loads(capsys.readouterr().out)
    assert (told["kind"], told["exit_code"]) == ("error", 2) and "none.yaml" in told["text"]
    assert main(["pretrain", missing]) == 2
    assert capsys.readouterr().err.startswith("error: ")
