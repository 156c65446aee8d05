"""Stores that refuse, are busy, or are not there: what their users are told."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tips_ray import storage
from tips_ray.storage import StorageError, errors


@pytest.fixture
def answers(monkeypatch):
    """A store that gives the answers (status, S3 error code) of a list, one per request, and then `fine`."""
    waiting: list[tuple[int, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            status, body = 200, b"fine"
            if waiting:
                status, code = waiting.pop(0)
                body = f"<Error><Code>{code}</Code><Message>of a library</Message></Error>".encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        threading.Thread(target=http.serve_forever, args=[0.01], daemon=True).start()
        _point_at(monkeypatch, f"http://127.0.0.1:{http.server_port}")
        monkeypatch.setattr(errors, "BACKOFF_SECONDS", (0.01, 0.01))
        yield waiting
        http.shutdown()


def _point_at(monkeypatch, endpoint: str) -> None:
    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "NO_PROXY")
    for name, value in zip(names, (endpoint, "someone", "not-to-be-shown", "us-east-1", "127.0.0.1"), strict=True):
        monkeypatch.setenv(name, value)


@pytest.mark.heavy
@pytest.mark.parametrize(
    "status, code, words",
    [
        (403, "InvalidAccessKeyId", "check AWS_ACCESS_KEY_ID"),
        (403, "SignatureDoesNotMatch", "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        (403, "AccessDenied", "access is denied"),
        (400, "ExpiredToken", "have expired"),
        (404, "NoSuchBucket", "bucket does not exist"),
        (400, "SomethingNew", "SomethingNew of a library"),
    ],
)
def test_what_a_store_refuses_is_one_sentence_with_a_cure(answers, status, code, words):
    answers += [(status, code)] * 9
    with pytest.raises(StorageError, match=f"^s3://bucket/x: .*{words}") as caught:
        storage.read_bytes("s3://bucket/x")
    assert len(answers) == 8, "a second try cures nothing"
    assert "not-to-be-shown" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_bucket_of_another_region_is_named(answers):
    answers += [(301, "PermanentRedirect")] * 9
    with pytest.raises(StorageError, match="s3://bucket/x: the bucket is in another region; set AWS_DEFAULT_REGION"):
        storage.read_bytes("s3://bucket/x")


def test_a_busy_store_is_tried_three_times(answers):
    answers += [(503, "SlowDown")] * 2
    assert storage.read_bytes("s3://bucket/x") == b"fine"
    answers += [(503, "SlowDown")] * 4
    with pytest.raises(StorageError, match="s3://bucket/x: the store is busy"):
        storage.read_bytes("s3://bucket/x")
    assert len(answers) == 1


def test_arrow_says_the_same_of_a_busy_store(answers):
    answers += [(503, "SlowDown")] * 4

    def read():
        filesystem, path = storage.filesystem("s3://bucket/x")
        return filesystem.open_input_file(path)

    with pytest.raises(StorageError, match="s3://bucket/x: the store is busy"):
        storage.attempt("s3://bucket/x", read)
    assert len(answers) == 1


class _Refusing(BaseHTTPRequestHandler):
    """A company's proxy: a page of its own for every request."""

    def do_GET(self) -> None:
        self.send_response(403)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_CONNECT = do_GET

    def log_message(self, format, *args) -> None:
        pass


@pytest.mark.heavy
@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_refuses_is_named_and_not_the_rights_on_the_bucket(monkeypatch, scheme):
    monkeypatch.setattr(errors, "BACKOFF_SECONDS", (0.01, 0.01))
    _point_at(monkeypatch, f"{scheme}://store.example.com")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with ThreadingHTTPServer(("127.0.0.1", 0), _Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv(f"{scheme}_proxy", f"http://user:not-to-be-shown@127.0.0.1:{server.server_port}")
        told = f"^s3://bucket/x: the proxy 127.0.0.1:{server.server_port} refuses the request or does not answer; let"
        with pytest.raises(StorageError, match=told):
            storage.read_bytes("s3://bucket/x")
        with pytest.raises(StorageError, match=told):
            filesystem, path = storage.filesystem("s3://bucket/x")
            storage.attempt("s3://bucket/x", lambda: filesystem.open_input_file(path))
        server.shutdown()


def test_a_store_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr(errors, "BACKOFF_SECONDS", (0.01, 0.01))
    _point_at(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="s3://bucket/x: the store .http://127.0.0.1:9. cannot be reached"):
        storage.list_files("s3://bucket/x")


@pytest.mark.heavy
def test_missing_credentials_are_named(monkeypatch, tmp_path):
    _point_at(monkeypatch, "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StorageError, match="s3://bucket/x: no credentials were found; set AWS_ACCESS_KEY_ID"):
        storage.list_files("s3://bucket/x")


def test_a_store_that_cannot_be_reached_is_named_without_the_password_of_its_url(monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:word@127.0.0.1:9")
    assert str(errors._unreachable("s3://b/x")).startswith("s3://b/x: the store (http://127.0.0.1:9) cannot be reached")


def test_an_endpoint_without_a_scheme_is_refused(monkeypatch):
    _point_at(monkeypatch, "me:word@127.0.0.1:9000")
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL .127.0.0.1:9000. must begin with http"):
        storage.list_files("s3://bucket/x")


def test_a_wrong_secret_is_refused_by_a_real_store(s3, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="the keys do not belong together"):
        storage.list_files("s3://store/x")
