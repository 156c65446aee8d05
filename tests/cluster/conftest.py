"""A dashboard of Ray in this process."""

from collections.abc import Iterator

import pytest
from dashboard import Dashboard, dashboard

from cluster import job_server


@pytest.fixture
def board(monkeypatch) -> Iterator[Dashboard]:
    monkeypatch.setattr(job_server, "POLL_SECONDS", 0.05)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    with dashboard() as board:
        yield board
