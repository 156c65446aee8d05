"""`tips-ray doctor` on this machine, and on ones where something is missing."""

import argparse
import socket
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from packaging.requirements import Requirement

from jobs import doctor as job
from jobs.cli import main
from tips_ray.errors import CheckWarning
from tips_ray.launch import cluster as ray_cluster
from tips_ray.launch import machine_checks
from tips_ray.launch.surroundings import shared_memory_suffices, surroundings


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch, tmp_path):
    """No store, cluster or credentials from the environment of the tests."""
    names = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE")
    for name in (*names, "RAY_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def _store(seconds_ahead: float):
    """A store that refuses, as every store does without a signature; its clock is ahead."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(403)

        def date_time_string(self, timestamp=None):
            import time

            return super().date_time_string(time.time() + seconds_ahead)

        def log_message(self, format, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def test_this_machine_passes_and_every_check_has_a_line(capsys):
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4].strip() for line in lines if line.startswith("fail")] == []
    checks = [line[6:23].strip() for line in lines]
    assert {"loopback", "proxies", "home", "ray sockets"} <= {check.split("  ")[0] for check in checks}
    assert {"python", "packages", "torchvision", "accelerator", "shared memory", "ray", "s3 store"} <= set(checks)


def test_what_fails_is_told_with_the_rest_and_the_code_is_one(capsys, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:not-to-be-shown@127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "not-to-be-shown")
    assert main(["doctor", "none.yaml"]) == 1
    out = capsys.readouterr().out
    failed = [line[6:23].strip() for line in out.splitlines() if line.startswith("fail")]
    assert failed == ["ray", "s3 store", "config"] and "credentials by env" in out
    assert "not-to-be-shown" not in out and "Traceback" not in out


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("torch<1", "torch .* is installed, it must be <1: pip install 'torch<1'"),
        ("no-such-package>=2", "no-such-package is not installed: pip install 'no-such-package>=2'"),
        ("torch>=1", None),
    ],
)
def test_a_package_out_of_its_range_is_named_with_the_command(line, words):
    import re

    fault = machine_checks._fault(Requirement(line))
    assert fault is None if words is None else re.search(words, fault or "")


def test_a_small_shared_memory_is_a_doubt(monkeypatch):
    monkeypatch.setattr(ray_cluster, "OBJECT_STORE_BYTES", 1 << 60)
    with pytest.raises(CheckWarning, match="--shm-size"):
        shared_memory_suffices("/")


def test_a_store_that_refuses_answers(monkeypatch):
    with _store(seconds_ahead=0) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        assert "answers" in machine_checks.store_answers()
        with pytest.raises(ValueError, match="no credentials are found: set AWS_ACCESS_KEY_ID"):
            machine_checks.settings_are_whole()
        server.shutdown()


def test_a_clock_that_s3_would_refuse_fails(monkeypatch):
    with _store(seconds_ahead=3600) as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        with pytest.raises(ValueError, match=r"the clock of this machine is 3\d\d\d s apart"):
            machine_checks.store_answers()
        server.shutdown()


def test_help_imports_nothing_heavy():
    code = "import sys, jobs.cli, jobs.doctor, jobs.pretrain; print({'torch', 'ray', 'boto3'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"


def test_arguments_are_a_config_and_its_overrides():
    parser = argparse.ArgumentParser()
    job.add_arguments(parser)
    assert parser.parse_intermixed_args(["a.yaml", "seed=1"]).overrides == ["seed=1"]
    assert parser.parse_intermixed_args([]).config is None


def test_what_surrounds_the_process_is_told_by_doctor(capsys, monkeypatch, tmp_path):
    (tmp_path / "ray.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", f"/tmp/{'x' * 90}")
    monkeypatch.setattr(machine_checks, "machine_checks", surroundings)
    monkeypatch.setattr(socket, "create_connection", lambda *place: (_ for _ in ()).throw(OSError(101, "unreachable")))
    assert main(["doctor"]) == 1
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fail")]
    words = ("cannot connect to itself at 127.0.0.1 (unreachable)", "ray.py in the working directory", "set RAY_TMPDIR")
    assert len(lines) == 3 and all(word in line for word, line in zip(words, lines, strict=True))
