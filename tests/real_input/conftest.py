"""Real photos in every layout, on disk and on a real S3 server."""

from pathlib import Path

import pytest
from photos import SAMPLE


@pytest.fixture(scope="session", autouse=True)
def sample() -> Path:
    """The folder of the photos; without it nothing here can be tested."""
    if not SAMPLE.exists():
        pytest.skip("the photos of ../shared/data/flickr-sample are not here")
    return SAMPLE
