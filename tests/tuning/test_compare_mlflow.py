"""`tips-ray compare` from MLflow alone: runs of ours and of another tool, with known metrics."""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from mlflow.entities import Metric, Param, RunTag
from toy_run import tiny_run

from jobs.cli import main
from tips_ray import storage
from tips_ray.runs import RunFolder
from tips_ray.runs.mlflow_access import mlflow_client
from tips_ray.runs.run import claim_data, run_at
from tips_ray.runs.tracking import start_tracking

NOISE = (0.3, -0.1, 0.2, -0.4, 0.0, 0.25)
"""What a seed adds to the loss in every setting."""
OURS = {"global_batch_images": 8, "resources.workers": 2, "resources.gpus_per_worker": 1.0, "resources.dtype": "fp32"}
Logged = Iterable[tuple[int, float, float]]
"""Step, seconds, value."""


class World:
    """A database and the runs in it."""

    def __init__(self, path: Path) -> None:
        self.path, self.uri = path, f"sqlite:///{path}"
        self.client = mlflow_client(self.uri)
        self.ids: dict[str, str] = {}

    def experiment(self, name: str) -> str:
        found = self.client.get_experiment_by_name(name)
        return found.experiment_id if found else self.client.create_experiment(name)

    def run(
        self,
        experiment: str,
        name: str,
        params: Mapping[str, Any],
        logged: Mapping[str, Logged] = {},  # noqa: B006
        **tags: str,
    ) -> str:
        """A finished run."""
        run = self.client.create_run(self.experiment(experiment), run_name=name)
        points = [Metric(key, v, int(s * 1000), step) for key, rows in logged.items() for step, s, v in rows]
        listed = [Param(key, str(value)) for key, value in params.items()]
        named = [RunTag(key.replace("__", "."), value) for key, value in tags.items()]
        self.client.log_batch(run.info.run_id, points, listed, named)
        self.client.set_terminated(run.info.run_id)
        self.ids[name] = run.info.run_id
        return run.info.run_id

    def ours(self, experiment: str, name: str, logged: Logged, seed: int = 0, alpha: float = 1.0, **tags: str) -> str:
        """A run as we log it: its name and places differ, and decide nothing."""
        own = {"name": name, "seed": seed, "storage": f"/runs/{name}", "tracking.experiment": name}
        data = {"data.sources": [{"uri": f"/{name}", "weight": 1.0}], "objective.alpha": alpha}
        tags = {"run_folder": f"/runs/{name}", "batch_fingerprint": f"batches of {seed}", **tags}
        return self.run(experiment, name, {**OURS, **own, **data}, {"loss/total": logged, "hits": logged}, **tags)


@pytest.fixture(scope="module")
def world(tmp_path_factory, mlflow_database) -> World:
    path = tmp_path_factory.mktemp("compare") / "mlflow.db"
    shutil.copy(mlflow_database, path)
    world = World(path)
    for seed, noise in enumerate(NOISE):
        for name, gain in (("plain", 0.0), ("alpha", 0.1 + seed / 100)):
            logged = [(1, 10.0, 9.0), (2, 20.0, 5 + noise - gain)]
            world.ours("six", f"{name}-{seed}", logged, seed, 1.0 + bool(gain), sweep="by alpha")
    parent = world.run("six", "parent", {"searched": "alpha"})
    world.run("six", "scores", {}, {"miou": [(0, 1.0, 0.5)]}, mlflow__parentRunId=parent)
    for seed, loss in ((1, 3.0), (2, 5.0)):
        for model in ("vit", "cnn"):
            logged = [(0, 0.0, 9.0), (1, 1.0, loss + (model == "cnn"))]
            world.run("other", f"{model}{seed}", {"random_seed": seed, "name": model}, {"val_loss": logged})
    world.ours("one", "single", [(1, 0.0, 1.0)])
    world.experiment("empty")
    return world


def _compare(capsys, world: World, *words: str) -> tuple[int, str]:
    code = main(["compare", *words, "--mlflow-uri", world.uri])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_six_pairs_of_an_experiment_give_the_claim_that_run_folders_give(world, capsys, tmp_path):
    """Gains of .1, .11, ..., .15 with a mean of .125; name, storage and the places of the data decide nothing."""
    code, said = _compare(capsys, world, "--experiment", "six", "--json", str(tmp_path / "six.json"))
    assert code == 0 and "differ in: objective.alpha\n" in said
    assert said.startswith(f"left out: scores ({world.ids['scores']}) has no loss/total\n")
    assert "left out: parent runs without metrics: 1\n" in said
    assert "objective.alpha=1.0 (baseline): 6 runs, seeds 0, 1, 2, 3, 4, 5\n" in said
    assert "at step 2: better\n  0.125 lower (0.105 to 0.145), p 0.031, 6 pairs on the same batches; pairs corr" in said
    found = json.loads((tmp_path / "six.json").read_text())
    assert found["differ_in"] == ["objective.alpha"] and found["baseline"] == "objective.alpha=1.0"
    assert found["compared_at"] == {"by": "step", "unit": "step", "value": 2}
    (verdict,) = found["verdicts"]
    assert (verdict["claim"], verdict["more_seeds"], len(verdict["pairs"])) == ("better", 0, 6)
    assert verdict["difference"]["mean"] == pytest.approx(0.125) and verdict["words"][1] in said
    assert [pair["gain"] for pair in verdict["pairs"]] == pytest.approx([0.10, 0.11, 0.12, 0.13, 0.14, 0.15])
    first = found["settings"][0]["runs"][0]
    assert first["run"] == world.ids["plain-0"] and first["batch_fingerprint"] == "batches of 0"
    values = {"final": 5.3, "best": 5.3, "equal": 5.3, "equal_gpu-hours": 5.3}
    assert first["metrics"]["loss/total"] == {**values, "diverged_at_step": None}
    assert found["also_at"] == [{"by": "gpu-hours", "unit": "GPU-hours", "value": pytest.approx(40 / 3600)}]


def test_a_sweep_is_the_runs_with_its_tag_and_the_baseline_is_any_of_them(world, capsys):
    by_name = _compare(capsys, world, "--sweep", "by alpha", "--baseline", "alpha-3")[1]
    by_id = _compare(capsys, world, "--sweep", "by alpha", "--baseline", world.ids["alpha-0"])[1]
    assert by_name == by_id and by_name.startswith("differ in: objective.alpha\n")
    assert "objective.alpha=1.0 against objective.alpha=2.0, loss/total at step 2: worse\n" in by_name


def test_runs_of_another_tool_are_compared_by_their_params_and_unpaired(world, capsys, monkeypatch):
    """Their `name` may be what differs; vit has losses 3 and 5, cnn 4 and 6."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", world.uri)
    assert main(["compare", "--experiment", "other", "--metric", "val_loss"]) == 0
    said = capsys.readouterr().out
    assert said.startswith('differ in: name\nname="vit" (baseline): 2 runs, seeds 1, 2\n')
    assert "  val_loss: final 4 ± 1.4, best 4 ± 1.4, at step 1 4 ± 1.4\n" in said
    assert 'name="cnn" against name="vit", val_loss at step 1: no claim\n  1 higher (' in said
    assert "no pairs: 4 of 4 runs without batch_fingerprint\n  a claim needs at least 4 more seeds of both\n" in said


def test_params_that_are_ignored_and_runs_that_are_left_out_do_not_count(world, capsys):
    words = ("--experiment", "other", "--metric", "val_loss", "--ignore", "na*")
    code, said = _compare(capsys, world, *words)
    assert code == 2 and "have one config and the seed 1: leave one out" in said
    code, said = _compare(capsys, world, *words, "--leave-out", "cnn1", "--leave-out", world.ids["cnn2"])
    assert code == 0 and "left out: runs that --leave-out names, or whose folder is given: 2\n" in said
    assert "differ in: nothing but their seeds\nall (baseline): 2 runs, seeds 1, 2\n" in said


def test_of_repeated_steps_the_latest_counts_and_what_a_restored_run_had_logged_beyond_does_not(world, capsys):
    """The run of ours is restored at 10 and ends at 20; another tool's steps may come in any order."""
    if "again" not in world.ids:
        logged = [(10, 1.0, 5.0), (20, 2.0, 4.0), (30, 3.0, 1.0), (20, 9.0, 3.5)]
        world.ours("again", "again", logged)
        world.ours("again", "whole", [(10, 1.0, 5.0), (20, 2.0, 3.0), (30, 3.0, 2.0)], alpha=2.0)
        for name in ("one", "two"):
            world.run("any order", name, {"lr": name}, {"loss/total": logged})
    said = _compare(capsys, world, "--experiment", "again")[1]
    assert "loss/total: final 3.5, best 3.5, at step 20 3.5\n" in said
    assert "loss/total: final 2, best 2, at step 20 3\n" in said
    said = _compare(capsys, world, "--experiment", "any order")[1]
    assert said.count("loss/total: final 1, best 1, at step 30 1\n") == 2 and "1 run, seeds unknown" in said


def test_a_run_that_diverged_is_told_and_its_side_is_never_called_better(world, capsys, tmp_path):
    """The new setting loses seed 0 at step 2 and seed 1 at step 3, where settings are compared: two of seven."""
    for seed in range(7):
        end = {0: math.nan, 1: math.inf}.get(seed, 4.0 - seed / 10)
        world.ours("diverged", f"d-base-{seed}", [(1, 0.0, 9.0), (2, 1.0, 5.0), (3, 2.0, 5.0)], seed)
        logged = [(1, 0.0, 9.0), (2, 1.0, 4.0 if seed else end), (3, 2.0, end)]
        world.ours("diverged", f"d-new-{seed}", logged, seed, 2.0)
    words = ("--experiment", "diverged", "--csv", str(tmp_path / "runs.csv"), "--json", str(tmp_path / "runs.json"))
    said = _compare(capsys, world, *words)[1]
    assert f"  d-new-0 ({world.ids['d-new-0']}), seed 0: loss/total diverged at step 2\n" in said
    assert f"  d-new-1 ({world.ids['d-new-1']}), seed 1: loss/total diverged at step 3\n" in said
    assert (
        "objective.alpha=2.0: 7 runs, seeds 0, 1, 2, 3, 4, 5, 6\n  loss/total: final 3.6 ± 0.16 (5 of 7 runs)" in said
    )
    assert "at step 3: no claim\n" in said and "5 pairs on the same batches" in said
    assert "  2 of 7 runs of objective.alpha=2.0 had diverged by then: not in the numbers\n" in said
    rows = (tmp_path / "runs.csv").read_text().splitlines()
    assert sum(row.endswith(",nan,4.0,nan,nan,batches of 1,3") for row in rows) == 1
    verdict = json.loads((tmp_path / "runs.json").read_text())["verdicts"][0]
    assert verdict["claim"] == "no claim" and len(verdict["pairs"]) == 5 and verdict["more_seeds"] == 1
    said = _compare(capsys, world, "--experiment", "diverged", "--leave-out", "d-new-1", "--leave-out", "d-base-0")[1]
    assert "2 of 6" not in said and "1 of 6 runs of objective.alpha=2.0 had diverged by then" in said


def test_a_run_that_diverges_later_keeps_its_value_and_takes_the_claim(world, capsys):
    """Six pairs agree at step 2, where all are finite, and one of the better side diverges at step 3."""
    for seed in range(6):
        end = [(3, 2.0, math.nan)] if seed == 0 else []
        world.ours("later", f"l-base-{seed}", [(1, 0.0, 9.0), (2, 1.0, 5.0)], seed)
        world.ours("later", f"l-new-{seed}", [(1, 0.0, 9.0), (2, 1.0, 4.0 - seed / 100), *end], seed, 2.0)
    said = _compare(capsys, world, "--experiment", "later")[1]
    assert "loss/total at step 2: no claim\n" in said and "6 pairs on the same batches" in said
    assert "  1 of 6 runs of objective.alpha=2.0 diverged later\n" in said
    assert "  no claim, because a run of the side that looks better diverged\n" in said
    assert "a claim needs" not in said


def test_equal_images_and_gpu_hours_by_hand(world, capsys):
    """Two workers with a GPU each. `slow` takes 100 s for ten steps; it rests 4,800 s, logs 20 again, and ends at 30.

    Its 30 steps count 100 s each ten: 300 s, 600 GPU-seconds, .1667 GPU-hours. `fast` has 16 images a step, and takes
    40 s for ten: its 50 steps are 200 s and .1111 GPU-hours, which `slow` reaches at step 10 (.0556), not yet at 20.
    """
    logged = [(10, 0.0, 5.0), (20, 100.0, 4.0), (30, 200.0, 3.0), (20, 5000.0, 4.5), (30, 5100.0, 3.5)]
    world.ours("amounts", "slow", logged)
    fast = {**OURS, "global_batch_images": 16, "objective.alpha": 1.0, "seed": 0}
    points = [(10 * n, 40.0 * n, 6.0 - n) for n in range(1, 6)]
    world.run("amounts", "fast", fast, {"loss/total": points}, run_folder="/runs/fast")
    said = _compare(capsys, world, "--experiment", "amounts", "--at", "images", "--ignore", "*")[1]
    assert said.startswith("error: ")  # both have seed 0
    said = _compare(capsys, world, "--experiment", "amounts", "--at", "images")[1]
    assert (
        "loss/total: final 3.5, best 3.5, at 240 images 3.5\n    also at step 30 3.5, at 0.1111 GPU-hours 4.5\n" in said
    )
    assert "loss/total: final 1, best 1, at 240 images 5\n" in said
    said = _compare(capsys, world, "--experiment", "amounts", "--at", "gpu-hours")[1]
    assert "loss/total: final 3.5, best 3.5, at 0.1111 GPU-hours 4.5\n" in said
    assert "loss/total: final 1, best 1, at 0.1111 GPU-hours 1\n" in said


def test_a_pause_counts_no_hours_and_a_run_without_gpus_counts_its_workers(world, capsys):
    """Three workers, ten steps in 36 s: .03 worker-hours; an hour's pause after step 30 counts as ten steps do."""
    pauses = [(10, 0.0, 5.0), (20, 36.0, 4.0), (30, 72.0, 3.0), (40, 3672.0, 2.0), (50, 3708.0, 1.0)]
    workers = {**OURS, "resources.workers": 3, "resources.gpus_per_worker": 0, "seed": 0}
    for name, alpha in (("p-one", 1), ("p-two", 2)):
        points = {"loss/total": pauses[: 6 - alpha]}
        world.run("paused", name, {**workers, "objective.alpha": alpha}, points, run_folder="/r")
    said = _compare(capsys, world, "--experiment", "paused", "--at", "gpu-hours")[1]
    assert said.count("at 0.12 worker-hours 2\n") == 2 and "final 1, best 1, at 0.12" in said
    elastic = {**workers, "resources.min_workers": 1, "objective.alpha": 3}
    world.run("paused", "p-elastic", elastic, {"loss/total": pauses}, run_folder="/r")
    said = _compare(capsys, world, "--experiment", "paused", "--at", "gpu-hours")[1]
    assert "had between 1 and 3 workers, and how many at which time is not known from here: give its run folder" in said
    world.ours("paused", "p-gpus", pauses, alpha=4.0)
    words = ("--experiment", "paused", "--at", "gpu-hours", "--leave-out", "p-elastic")
    assert ") used no GPUs and others did: compare them --at step or images\n" in _compare(capsys, world, *words)[1]


def test_a_run_folder_and_a_run_of_mlflow_that_we_logged_differ_in_what_differs(world, capsys, tmp_path):
    """The experiment has the run of the folder too, which is then compared once."""
    uris = {}
    for name, alpha in (("here", 1.0), ("there", 2.0)):
        keys = {"objective__alpha": alpha, "tracking__mlflow_uri": world.uri, "tracking__experiment": "both"}
        config = tiny_run(tmp_path, f"photos of {name}", name=name, **keys)
        folder = RunFolder(f"{tmp_path}/{name}")
        folder.claim(yaml.safe_dump(config.model_dump(mode="json")))
        claim_data(folder.uri, "a" * 64)
        storage.write_text(f"{folder.uri}/tokenizer.json", "vocabulary")
        folder.log_metrics(1, {"loss/total": alpha})
        batches = run_at(folder.uri).batch_fingerprint()
        tracking = start_tracking(config, folder.uri, data_fingerprint="a" * 64, tags={"batch_fingerprint": batches})
        tracking.log(1, {"loss/total": alpha})
        tracking.finish("FINISHED")
        uris[name] = folder.uri
    code, said = _compare(capsys, world, uris["here"], "--experiment", "both")
    assert code == 0, said
    assert said.startswith("left out: runs that --leave-out names, or whose folder is given: 1\ndiffer in: objective.a")
    assert "\nobjective.alpha=1.0 (baseline): 1 run, seeds 0\n" in said
    assert "  1 higher, one seed has no interval, 1 pair on the same batches\n" in said


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("--experiment none", "--experiment (none) does not exist at sqlite:///{path}; give one of: "),
        ("--experiment empty", "--experiment (empty) has no run at sqlite:///{path}: a comparison needs two"),
        ("--experiment one", "--experiment (one) has one run at sqlite:///{path}: a comparison needs two"),
        ("--sweep none", "--sweep (none) is the tag `sweep` of no run at sqlite:///{path}; give one of: by alpha"),
        ("--experiment other", "--metric (loss/total): 0 of 4 runs of --experiment (other) have it, and"),
        ("--experiment other", "give one of these (runs that have it): val_loss (4)"),
        ("--experiment six --metric miou", "--metric (miou): 1 of 13 runs of --experiment (six) have it"),
        ("--experiment six --baseline no", "--baseline (no) is no run folder and none of these runs: plain-0, alpha-0"),
        ("--experiment six --leave-out no", "--leave-out (no) is no run of --experiment (six)"),
        ("--experiment other --metric val_loss --at images", "has no param global_batch_images: leave it out, or"),
        ("--experiment other --metric val_loss --at gpu-hours", "has no param resources.gpus_per_worker: leave"),
        ("", "there are no runs to compare: give two run folders, or --experiment or --sweep"),
    ],
)
def test_what_mlflow_lacks_is_a_sentence(world, capsys, words, told):
    code, said = _compare(capsys, world, *words.split())
    assert code == 2 and said.startswith("error: ") and told.format(path=world.path) in said and said.count("\n") == 1


def test_an_address_that_is_missing_or_does_not_answer_is_a_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert main(["compare", "--experiment", "a"]) == 2
    assert "--experiment (a): give --mlflow-uri, or set MLFLOW_TRACKING_URI" in capsys.readouterr().err
    path = tmp_path / "none.db"
    assert main(["compare", "--experiment", "a", "--mlflow-uri", f"sqlite:///{path}"]) == 2
    assert f"--mlflow-uri (sqlite:///{path}): there is no such file" in capsys.readouterr().err
    assert not path.exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert main(["compare", "--sweep", "a"]) == 2
    assert "MLFLOW_TRACKING_URI (http://127.0.0.1:9) does not answer" in capsys.readouterr().err
