"""Every YAML of jobs/configs is a valid run, every one of jobs/ablations a valid ablation."""

from pathlib import Path

import pytest
import yaml

from tips_ray.config import RunConfig, load_config
from tips_ray.config.ablation import AblationConfig
from tuning.ablations.ablation import sweep_of

JOBS = Path(__file__).parents[1] / "jobs"
CONFIGS, ABLATIONS = (sorted((JOBS / folder).glob("*.yaml")) for folder in ("configs", "ablations"))
FILLED_BY_THE_JOB = ("name=demo", "data.sources=[{uri: s3://scenes/train}]")
"""What `tips-ray demo` adds to a config whose `sources` is empty."""


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_every_config_of_a_job_is_a_valid_run(path):
    is_complete = bool(yaml.safe_load(path.read_text())["data"]["sources"])
    config = load_config(RunConfig, path, () if is_complete else FILLED_BY_THE_JOB)
    assert config.schedule.warmup_steps < config.schedule.total_steps


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda path: path.name)
def test_every_ablation_of_a_job_is_a_valid_sweep(path, tmp_path):
    has_scenes = "scenes" in yaml.safe_load(path.read_text())
    config = load_config(AblationConfig, path, () if has_scenes else ["base.data.sources=[{uri: photos}]"])
    assert set(sweep_of(config, tmp_path).listed) == set(config.rows)
