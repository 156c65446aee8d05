"""The S3 server of the demo works with three kinds of clients and leaves no process when it ends."""

import io
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import botocore.exceptions
import pyarrow.fs
import pytest
import s3fs
from boto3.s3.transfer import TransferConfig

from jobs.cli import main
from tips_ray.demo import s3_server as module
from tips_ray.demo.s3_server import ACCESS_KEY, REGION, LocalS3, local_s3

pytestmark = pytest.mark.heavy
ROOT = Path(__file__).parents[2]


@pytest.fixture
def bucket(s3):
    return s3.make_bucket("photos")


def _is_running(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


def _status_code(error: pytest.ExceptionInfo) -> int:
    return error.value.response["ResponseMetadata"]["HTTPStatusCode"]


def _boto3_client():
    return boto3.Session().client("s3")  # the default session keeps the credentials of other tests


def _pyarrow_filesystem() -> pyarrow.fs.FileSystem:
    return pyarrow.fs.FileSystem.from_uri("s3://photos")[0]  # S3FileSystem() does not read AWS_ENDPOINT_URL


def _write_with_boto3(key: str, body: bytes) -> None:
    _boto3_client().put_object(Bucket="photos", Key=key, Body=body)


def _write_with_pyarrow(key: str, body: bytes) -> None:
    with _pyarrow_filesystem().open_output_stream(f"photos/{key}") as stream:
        stream.write(body)


def _write_with_s3fs(key: str, body: bytes) -> None:
    s3fs.S3FileSystem(skip_instance_cache=True).pipe_file(f"photos/{key}", body)


@pytest.mark.parametrize("write", [_write_with_boto3, _write_with_pyarrow, _write_with_s3fs])
def test_an_object_written_by_one_client_is_read_and_listed_by_all(bucket, write):
    write(f"{write.__name__}/ünï 1.bin", b"0123456789")
    path = f"photos/{write.__name__}/ünï 1.bin"
    found = _boto3_client().list_objects_v2(Bucket="photos", Prefix=write.__name__)["Contents"]
    assert [item["Key"] for item in found] == [path.removeprefix("photos/")]
    body = _boto3_client().get_object(Bucket="photos", Key=found[0]["Key"], Range="bytes=2-4")["Body"].read()
    assert body == b"234"
    assert s3fs.S3FileSystem(skip_instance_cache=True).cat_file(path) == b"0123456789"
    with _pyarrow_filesystem().open_input_file(path) as file:
        assert file.read() == b"0123456789"


def test_a_large_object_goes_in_parts(bucket):
    body = os.urandom(6 * 2**20)
    parts = TransferConfig(multipart_threshold=2**20, multipart_chunksize=5 * 2**20)
    _boto3_client().upload_fileobj(io.BytesIO(body), "photos", "large", Config=parts)
    answer = _boto3_client().get_object(Bucket="photos", Key="large")
    assert answer["ETag"].endswith('-2"')
    assert answer["Body"].read() == body


def test_of_two_conditional_puts_the_second_is_refused(bucket):
    client = _boto3_client()
    client.put_object(Bucket="photos", Key="lock", Body=b"first", IfNoneMatch="*")
    with pytest.raises(botocore.exceptions.ClientError) as error:
        client.put_object(Bucket="photos", Key="lock", Body=b"second", IfNoneMatch="*")
    assert _status_code(error) == 412
    assert client.get_object(Bucket="photos", Key="lock")["Body"].read() == b"first"


def test_a_wrong_secret_is_refused(s3_server, bucket):
    thief = LocalS3(s3_server.endpoint_url, "wrong", s3_server.pid).client()
    with pytest.raises(botocore.exceptions.ClientError) as error:
        thief.list_objects_v2(Bucket="photos")
    assert _status_code(error) == 403


def test_making_a_bucket_twice_keeps_its_objects(s3_server, bucket):
    _write_with_boto3("kept", b"1")
    assert s3_server.make_bucket("photos") == bucket == "s3://photos"
    assert _boto3_client().head_object(Bucket="photos", Key="kept")["ContentLength"] == 1


def test_a_bucket_is_there_once_it_is_made_and_gone_once_it_is_deleted(s3_server):
    client = s3_server.client()
    for _ in range(2):
        with pytest.raises(client.exceptions.NoSuchBucket):
            client.list_objects_v2(Bucket="passing")
        client.create_bucket(Bucket="passing")
        client.put_object(Bucket="passing", Key="a", Body=b"1")
        assert client.list_objects_v2(Bucket="passing")["KeyCount"] == 1
        client.delete_object(Bucket="passing", Key="a")
        client.delete_bucket(Bucket="passing")


def test_the_secret_is_shown_neither_by_the_object_nor_by_the_process_list(s3_server):
    command_line = Path(f"/proc/{s3_server.pid}/cmdline").read_text()
    assert s3_server.secret not in command_line and s3_server.secret not in repr(s3_server)


def test_objects_are_there_after_a_restart_and_the_process_is_gone_after_the_context(tmp_path):
    with local_s3(tmp_path) as first:
        first.make_bucket("photos")
        first.client().put_object(Bucket="photos", Key="x", Body=b"kept")
    assert not _is_running(first.pid)
    with local_s3(tmp_path) as second:
        assert second.client().get_object(Bucket="photos", Key="x")["Body"].read() == b"kept"


def test_an_exception_inside_ends_the_server(tmp_path):
    with pytest.raises(KeyError), local_s3(tmp_path) as server:
        raise KeyError("ours")
    assert not _is_running(server.pid)


def test_the_server_ends_when_its_parent_is_killed(tmp_path):
    code = f"""
import time
from pathlib import Path
from tips_ray.demo.s3_server import local_s3
with local_s3(Path({str(tmp_path)!r})) as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert _is_running(pid)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 5
    while _is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _is_running(pid)


def test_a_server_that_cannot_start_says_why(s3_server, tmp_path):
    port = int(s3_server.endpoint_url.rpartition(":")[2])
    with pytest.raises(OSError, match=r"(?s)ended with code 1; its log ends:.*Address already in use"):
        with local_s3(tmp_path, port):
            pass


def test_a_folder_is_served_once(tmp_path, capsys):
    with local_s3(tmp_path / "s3") as server:
        with pytest.raises(OSError, match="is served by another process"), local_s3(tmp_path / "s3"):
            pass
        assert main(["demo", str(tmp_path)]) == 2
        told = capsys.readouterr().err
        assert "is served by another process" in told and told.count("\n") == 1
        server.make_bucket("still-there")


def test_without_swift_the_message_names_the_package(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(OSError, match="pip install swift"), local_s3(tmp_path):
        pass


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_run_as_a_program_it_prints_the_exports_and_stops_on_a_signal(tmp_path, number):
    command = [sys.executable, "-m", "tips_ray.demo.s3_server", str(tmp_path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert process.stdout is not None
    lines = [process.stdout.readline().strip() for _ in range(6)]
    assert lines[0].startswith("export AWS_ENDPOINT_URL=http://127.0.0.1:")
    assert f"export AWS_ACCESS_KEY_ID={ACCESS_KEY}" in lines and f"export AWS_DEFAULT_REGION={REGION}" in lines
    process.send_signal(number)
    assert process.wait(10) == 0
