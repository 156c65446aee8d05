"""A run on Ray that nothing disturbs, with which tests of two files compare others."""

from collections.abc import Callable
from functools import cache

import pytest
from toy_run import noted_run, write_scenes

from tips_ray.config import RunConfig
from tips_ray.launch import pretrain


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """40 scenes, of which row 7 is no image."""
    return write_scenes(tmp_path_factory.mktemp("launch") / "scenes", 40, {7: {"image": b"no image"}})


@pytest.fixture(scope="session")
def _trained_on_ray(data, tmp_path_factory) -> Callable[[], RunConfig]:
    def trained() -> RunConfig:
        pretrain(config := noted_run(tmp_path_factory.mktemp("on_ray"), data))
        return config

    return cache(trained)


@pytest.fixture(scope="module")
def on_ray(cluster, _trained_on_ray) -> RunConfig:
    """A run of two workers that has ended on Ray, the same for all files."""
    return _trained_on_ray()
