"""A finished run is read from its folder, compared with its plan, and corrects the next plan."""

import json
from pathlib import Path

import pytest
import yaml
from planning_toy import TOY

from jobs.cli import main
from tips_ray.config import RunConfig
from tips_ray.planning.against import finished_run
from tips_ray.planning.machines import GIB

RATES = [1.0, 30.0, 50.0, 40.0]  # the first is that of the start
H100 = {"hosts": 1, "cores": 8, "memory": "64 GiB", "accelerators": "NVIDIA H100 80GB HBM3"}


def _run(folder: Path, machine: dict, workers: int = 2, end: str = "FINISHED", lines: int = 4) -> Path:
    """A run folder by hand: two minutes and a half from its first start to its end."""
    for name in ("events", "metrics"):
        (folder / name).mkdir(parents=True)
    tree = RunConfig.model_validate(TOY | {"micro_batch_images": None}).model_dump(mode="json")
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    start = {"kind": "start", "step": 0, "workers": workers, "machine": machine}
    events = [{"time": "2026-01-01T10:00:00+00:00", **start}]
    if end:
        events.append({"time": "2026-01-01T10:02:30+00:00", "kind": "end", "step": None, "status": end})
    metrics = [
        {
            "step": step + 1,
            "time": "2026-01-01T10:01:00+00:00",
            "images_per_second": rate,
            "health/memory_peak_gib": 3 + step,
        }
        for step, rate in enumerate(RATES[:lines])
    ]
    for name, found in (("events/attempt-0001", events), ("metrics/attempt-0001-from-00000000", metrics)):
        (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in found))
    return folder


def test_it_tells_machine_rate_memory_and_time(tmp_path):
    done = finished_run(str(_run(tmp_path / "run", H100)))
    assert done.gpus == "h100:2" and done.config.resources.workers == 2
    assert done.measured == {"images_per_second": 40.0, "wall_seconds": 150.0, "memory_bytes": 6 * GIB}


def test_on_a_cpu_the_memory_of_the_process_is_no_measure(tmp_path):
    done = finished_run(str(_run(tmp_path / "run", {**H100, "accelerators": "none"})))
    assert done.gpus == "cpu:2" and "memory_bytes" not in done.measured


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"end": ""}, "has not reached its end"),
        ({"end": "KILLED"}, "has not reached its end"),
        ({"lines": 1}, "has logged one step"),
        ({"machine": {**H100, "accelerators": "Some 3"}}, "a plan does not know them"),
    ],
)
def test_a_run_that_cannot_be_compared_is_refused(tmp_path, change, sentence):
    with pytest.raises(ValueError, match=sentence):
        finished_run(str(_run(tmp_path / "run", **{"machine": H100, **change})))


@pytest.mark.heavy
def test_the_next_plan_takes_the_ratio_and_tells_the_error(tmp_path, capsys):
    kept, folder = str(tmp_path / "plans.json"), str(_run(tmp_path / "run", H100))
    assert main(["plan", "--against", folder, "--calibration", kept, "--mfu", "0.4"]) == 0
    assert "images/s" in capsys.readouterr().out
    config = str(tmp_path / "run" / "config.yaml")
    common = ["--images", "1k", "--gpus", "h100:2", "--no-largest", "--json", "--mfu", "0.4", "--calibration"]
    assert main(["plan", config, *common, kept]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["rates"]["training"] == pytest.approx(40.0)
    assert found["memory"]["peak_bytes"] == pytest.approx(6 * GIB)
    assert found["wall_seconds"] == pytest.approx(150.0)
    assert found["errors"]["images_per_second"] == [pytest.approx(found["raw"]["images_per_second"] / 40 - 1)]


def test_mistakes_are_one_sentence(tmp_path, capsys):
    kept = ["--calibration", str(tmp_path / "plans.json")]
    assert main(["plan", *kept]) == 2
    assert main(["plan", "--images", "1M", "--gpus", "h100:2", *kept]) == 2
    assert main(["plan", "--images", "1M", "--gpus", "h100:2", "--mfu", "0", *kept]) == 2
    assert main(["plan", "--against", str(tmp_path), *kept]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
