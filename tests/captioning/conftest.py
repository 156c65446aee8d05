import pytest

from jobs.local_s3 import local_s3


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory):
    with local_s3(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture(params=["local", "s3"])
def folder(request, tmp_path, monkeypatch):
    """An empty folder, local and on a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "store")
    server = request.getfixturevalue("s3_server")
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    return f"{server.make_bucket('captions')}/{tmp_path.name}"
