"""Every YAML of jobs/configs is a valid run."""

from pathlib import Path

import pytest
import yaml

from tips_ray.config import RunConfig, load_config

CONFIGS = sorted((Path(__file__).parents[1] / "jobs" / "configs").glob("*.yaml"))
FILLED_BY_THE_JOB = ("name=demo", "data.sources=[{uri: s3://scenes/train}]")
"""What `tips-ray demo` adds to a config whose `sources` is empty."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_a_job_is_a_valid_run(path):
    is_complete = bool(yaml.safe_load(path.read_text())["data"]["sources"])
    config = load_config(RunConfig, path, () if is_complete else FILLED_BY_THE_JOB)
    assert config.schedule.warmup_steps < config.schedule.total_steps
