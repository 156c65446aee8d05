"""`tips-ray sweep --from`: settings of an earlier sweep, or of finished runs in MLflow, come first."""

import shutil
from pathlib import Path

import pytest
import yaml
from mlflow.entities import Metric, Param
from toy_sweep import SPACE, bowl, queue, run_all, tiny_sweep

from jobs.cli import main
from tips_ray.runs.mlflow_access import mlflow_client
from tuning.sweeps.earlier import MOST, Earlier, earlier_settings
from tuning.sweeps.folder import CONFIG

NARROW = {**SPACE, "objective.alpha": {"loguniform": [0.5, 10]}}


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> str:
    """A sweep of 16 settings that is complete."""
    folder = tmp_path_factory.mktemp("earlier")
    config = tiny_sweep("a", settings=16, search="random")
    (folder / CONFIG).write_text(yaml.safe_dump(config.model_dump(mode="json")))
    run_all(queue(config, str(folder)))
    return str(folder)


def test_the_best_of_an_earlier_sweep_that_lie_in_the_space_come_first_and_once(swept, tmp_path):
    config = tiny_sweep("a", space=NARROW, settings=12, search="random")
    found, told = earlier_settings(config, Earlier(swept))
    every = queue(tiny_sweep("a", settings=16, search="random"), swept).settings
    inside = [one.values for one in every if one.values["objective.alpha"] >= 0.5]
    assert len(found) == MOST and f" give {len(inside)} settings of the space (objective.alpha, " in told
    assert told.startswith("16 settings with scores of ") and len(inside) < 16
    best = min(inside, key=lambda values: bowl(values, 0, 12))
    assert found[0] == best and all(one in inside for one in found)
    sweep = queue(config, str(tmp_path))
    sweep.record.add_earlier(found)
    sweep.record.add_earlier(found)
    run_all(sweep)
    again = queue(config, str(tmp_path))
    proposed = [(one.by, one.values) for one in again.settings if one.by != "random"]
    own = [values for values in found if values != again.settings[0].values]
    assert again.settings[0].by == "prior" and proposed[1:] == [("earlier", values) for values in own]
    assert len(again.settings) == 12


def test_finished_runs_of_an_experiment_are_taken_by_their_score(tmp_path, mlflow_database):
    shutil.copy(mlflow_database, path := tmp_path / "mlflow.db")
    client, uri = mlflow_client(f"sqlite:///{path}"), f"sqlite:///{path}"
    experiment = client.create_experiment("by hand")
    nan = float("nan")
    for alpha, loss, status in (
        (2.0, 3.0, "FINISHED"), (5.0, nan, "FINISHED"), (3.0, 1.0, "FINISHED"), (4.0, 0.0, "FAILED"), (50.0, 0.5, ""),
    ):  # fmt: skip
        run = client.create_run(experiment)
        params = [Param("objective.alpha", str(alpha)), Param("objective.beta", "1.5"), Param("batch", "8")]
        client.log_batch(run.info.run_id, [Metric("loss/contrastive_web", loss, 0, 1)], params)
        client.set_terminated(run.info.run_id, status or "FINISHED")
    config = tiny_sweep("a")
    found, told = earlier_settings(config, Earlier("by hand", uri))
    assert found == [
        {"objective.alpha": alpha, "objective.beta": 1.5, "objective.student_temperature": 0.1} for alpha in (3.0, 2.0)
    ]
    assert told.startswith("3 finished runs of by hand give 2 settings of the space (")
    other = tiny_sweep("a", scores=[{"metric": "loss/masked", "better": "lower"}])
    with pytest.raises(ValueError, match="4 finished runs, of which none has the metric loss/masked"):
        earlier_settings(other, Earlier("by hand", uri))
    with pytest.raises(ValueError, match=r"--from \(by feet\) does not exist at .*; give one of: .*by hand"):
        earlier_settings(config, Earlier("by feet", uri))


def test_settings_that_the_run_refuses_are_not_taken(tmp_path):
    """Warmup and cooldown of a constant schedule may be the whole run together; of a cosine they are free."""
    space = {key: {"uniform": [0.1, 0.7]} for key in ("schedule.warmup", "schedule.cooldown")}
    sizes = {"space": space, "settings": 12, "search": "random"}
    first = tiny_sweep("a", **sizes)
    (tmp_path / CONFIG).write_text(yaml.safe_dump(first.model_dump(mode="json")))
    ended = queue(first, str(tmp_path))
    run_all(ended, lambda values, seed, step: -sum(values.values()))
    sums = [sum(one.values.values()) for one in ended.settings]
    assert max(sums) > 1 > min(sums)
    found, _ = earlier_settings(tiny_sweep("a", **sizes, run__schedule__shape="constant"), Earlier(str(tmp_path)))
    assert found and all(sum(values.values()) <= 1 for values in found)


def test_mistakes_are_sentences(swept, tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    grid = {key: {"choice": [0.1]} for key in SPACE}
    outside = {"space": {"objective.ema_momentum": {"uniform": [0.5, 0.6]}}}
    cases: list[tuple[dict, str, str]] = [
        ({}, "nothing", "--from (nothing) is no folder of a sweep; for an experiment of MLflow give --mlflow-uri"),
        ({"space": grid, "search": "grid"}, swept, "a sweep with search (grid) has all its settings"),
        (outside, swept, "of which none lies in the space, such"),
    ]
    for values, place, sentence in cases:
        config = tiny_sweep(tmp_path, **values)
        path = Path(tmp_path, "sweep.yaml")
        path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
        assert main(["sweep", str(path), "--from", place, "--without-ray"]) == 2
        said = capsys.readouterr().err
        assert sentence in said and said.count("\n") == 1
    assert not Path(tmp_path, "tiny").exists()
