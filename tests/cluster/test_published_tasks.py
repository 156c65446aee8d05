"""SkyPilot and dstack themselves take the tasks, each in an environment of its own, because they clash with ours."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from manifests import SPOT, cluster_config, run_config
from test_targets import DATA, FULL, ROLES, TRAIN

from cluster.targets import written

pytestmark = [pytest.mark.slow, pytest.mark.variant]
PACKAGES = {"skypilot": "skypilot==0.14.1", "dstack": "dstack==0.22.5"}
READ = {
    "skypilot": """
import sys, yaml, sky
task = sky.Task.from_yaml_config(yaml.safe_load(open(sys.argv[1])))
(wanted,) = task.resources
print([task.num_nodes, wanted.accelerators, wanted.use_spot, wanted.job_recovery["max_restarts_on_errors"]])
""",
    "dstack": """
import sys, yaml
from dstack._internal.core.models.configurations import parse_run_configuration
task = parse_run_configuration(yaml.safe_load(open(sys.argv[1])))
gpus = {name: n for g in task.node_groups for n in [g.resources.gpu.count.max] for name in g.resources.gpu.name or []}
print([task.nodes_num, gpus, task.spot_policy.value == "spot", [event.value for event in task.retry.on_events]])
""",
}
SPOT_TRAIN = {"groups": [{**TRAIN, "spot": True}], "spot_nodes": SPOT}
WANTED = {
    "skypilot": [({}, [2, {"H100": 8}, False, 3]), ({**SPOT_TRAIN, "retries": 1}, [2, {"H100": 8}, True, 1])],
    "dstack": [
        ({"groups": [TRAIN, DATA]}, [4, {"H100": 8}, False, ["no-capacity", "interruption"]]),
        ({**SPOT_TRAIN, "deadline_seconds": 600}, [3, {"H100": 8}, True, ["no-capacity", "interruption"]]),
    ],
}


def python_with(requirement: str, place: Path) -> Path:
    """Python of a new environment that has the requirement; skips the test where it cannot be installed."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin")
    if not uv:
        pytest.skip("there is no uv")
    python = place / "bin" / "python"
    subprocess.run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(place)], check=True)
    install = [uv, "pip", "install", "--quiet", "--python", str(python), requirement]
    if subprocess.run(install, capture_output=True).returncode:
        pytest.skip(f"{requirement} cannot be installed here")
    return python


@pytest.fixture(scope="module", params=PACKAGES)
def package(request, tmp_path_factory):
    """Name of the package, and a Python that has it."""
    return request.param, python_with(PACKAGES[request.param], tmp_path_factory.mktemp(request.param))


def read(package, path: Path) -> subprocess.CompletedProcess:
    name, python = package
    home = {"HOME": str(path.parent), "PATH": "/usr/bin:/bin"}
    return subprocess.run([python, "-c", READ[name], path], capture_output=True, text=True, env=home)


@pytest.mark.parametrize("number", [0, 1])
def test_the_package_reads_the_task_as_it_is_meant(package, number, tmp_path):
    changes, wanted = WANTED[package[0]][number]
    path = tmp_path / "task.yaml"
    path.write_text(written(package[0], run_config(*ROLES), cluster_config(**{**FULL, **changes}), standing=False)[0])
    told = read(package, path)
    assert told.returncode == 0, told.stderr
    assert yaml.safe_load(told.stdout.splitlines()[-1].replace("None", "null")) == wanted


def test_the_package_refuses_a_misspelt_key(package, tmp_path):
    path = tmp_path / "task.yaml"
    text, _ = written(package[0], run_config(*ROLES), cluster_config(**FULL), standing=False)
    path.write_text(f"{text}\nspot_polici: spot\n")
    told = read(package, path)
    assert told.returncode != 0 and "spot_polici" in told.stderr
