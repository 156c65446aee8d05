"""Files of the working directory that have the names of modules: those that a run would meet are refused."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tips_ray.launch.hiding import leave_out_working_directory, nothing_hides_a_package

ROOT = Path(__file__).parents[2]
SET_UP = "from tips_ray.launch import hiding; hiding.nothing_hides_a_package(); hiding.leave_out_working_directory(); "


@pytest.mark.parametrize("name", ["torch.py", "statistics.py", "yaml/__init__.py"])
def test_a_module_that_rays_processes_meet_in_the_working_directory_is_refused(tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^{name} in the working directory"):
        nothing_hides_a_package()


@pytest.mark.parametrize("name", ["random.py", "turtle.py", "mine.py", "tests/__init__.py"])
def test_a_module_that_hides_none_is_not(tmp_path, monkeypatch, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    nothing_hides_a_package()


def _python(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """`python -c`, which looks for modules in the working directory first, as `python -m` does."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)  # which commands set for their children
    return subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, text=True)


def test_a_module_that_was_taken_from_the_working_directory_is_refused(tmp_path):
    (tmp_path / "random.py").touch()
    told = _python(tmp_path, f"import random; {SET_UP}").stderr
    assert "ValueError: random.py in the working directory" in told


def test_the_working_directory_is_left_out_here_and_in_processes_of_ours(tmp_path):
    (tmp_path / "random.py").touch()
    inner = "import sys; from random import Random; import tempfile"
    ended = _python(tmp_path, f"{SET_UP}{inner}; import subprocess; subprocess.run([sys.executable, '-c', {inner!r}])")
    assert (ended.returncode, ended.stderr) == (0, "")


def test_the_place_of_tips_ray_stays_on_the_path(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    leave_out_working_directory()
    assert sys.path[0] == "" and nothing_hides_a_package().endswith("is the place of tips_ray")
