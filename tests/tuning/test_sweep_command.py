"""`tips-ray sweep` and `tips-ray sweeps` as a user calls them: trials that really train, MLflow, results, mistakes."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from PIL import Image
from toy_run import WINDOWED, metrics_of_run, write_scenes
from toy_sweep import queue, run_all, tiny_sweep

from jobs.cli import main
from tips_ray import storage
from tips_ray.config import RunConfig, load_config
from tips_ray.config.sweep import SweepConfig, load_sweep
from tips_ray.launch import pretrain
from tips_ray.launch.on_ranks import RankTrainer
from tips_ray.runs.checkpoint import list_checkpoints
from tips_ray.runs.folder import RunFolder
from tips_ray.runs.lease import leased
from tips_ray.runs.metric_names import LOGGED_METRICS
from tips_ray.runs.mlflow_access import mlflow_client
from tips_ray.runs.mlflow_note import stored_run_id
from tuning.sweeps.forecast import forecast
from tuning.sweeps.queue import trial_name
from tuning.sweeps.record import Record
from tuning.sweeps.space import run_of

STEPS, RUNG = 6, 3


def _sweep(root: Path, data: str, **values: Any) -> SweepConfig:
    sizes = {"run__schedule__total_steps": STEPS, "rungs": [RUNG], "settings": 2, "run__checkpoint_every_steps": 100}
    return tiny_sweep(root, data, **{**sizes, **values})


def _written(config: SweepConfig) -> str:
    path = Path(config.storage) / "sweep.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_none=True)))
    return str(path)


def _command(capsys, *words: str) -> tuple[int, str]:
    code = main(list(words))
    said = capsys.readouterr()
    return code, said.out + said.err


class Swept(NamedTuple):
    config: SweepConfig
    uri: str
    path: str

    def trial(self, setting: int) -> RunFolder:
        return RunFolder(f"{self.uri}/runs/{trial_name(setting, 0)}")


@pytest.fixture(scope="module")
def swept(tmp_path_factory) -> Iterator[Swept]:
    """Two settings, of which the better one trains to the end."""
    root = tmp_path_factory.mktemp("sweep")
    config = _sweep(root, write_scenes(root / "scenes", 16))
    path = _written(config)
    assert main(["sweep", path, "--without-ray"]) == 0
    yield Swept(config, f"{root}/tiny", path)


@pytest.fixture
def record(swept) -> Record:
    return Record(swept.uri)


def _places(record: Record) -> list[int]:
    """Numbers of the two settings, the better one first."""
    scores = {number: one.trial(0).scores[RUNG] for number, one in record.settings.items()}
    return sorted(scores, key=lambda number: scores[number])


@pytest.mark.slow
def test_the_better_half_trains_to_the_end_from_where_it_paused(swept, record):
    better, worse = _places(record)
    assert {*record.settings[better].trial(0).scores} == {RUNG, STEPS}
    assert {*record.settings[worse].trial(0).scores} == {RUNG}
    lines = metrics_of_run(swept.trial(better))
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), "no step is done twice"
    assert record.settings[better].trial(0).scores[STEPS] == (lines[-1]["loss/contrastive_web"],)
    events = [(event["kind"], event["step"]) for event in swept.trial(better).read_events() if event["kind"] != "end"]
    assert ("resume", RUNG) in events and ("checkpoint", RUNG) in events
    assert [one.step for one in list_checkpoints(f"{swept.trial(worse).uri}/checkpoints")] == [RUNG]


@pytest.mark.slow
def test_a_trial_has_the_numbers_of_the_same_run_trained_at_once(swept, record, tmp_path):
    """Also the best config, given to `pretrain` as it is, but for its vocabulary, which is a file of the sweep."""
    better = _places(record)[0]
    config = load_config(RunConfig, Path(swept.uri) / "best.yaml", [f"storage={tmp_path}"])
    assert config.objective == run_of(swept.config, record.settings[better].values).objective
    uri = pretrain(config, RankTrainer())
    assert metrics_of_run(RunFolder(uri)) == metrics_of_run(swept.trial(better))
    assert Path(uri, "tokenizer.json").read_bytes() == Path(swept.uri, "tokenizer.json").read_bytes()


@pytest.mark.slow
def test_mlflow_has_a_parent_with_the_results_and_a_child_for_each_trial(swept, record):
    run = run_of(swept.config, {})
    client = mlflow_client(run.tracking.mlflow_uri)
    parent = client.get_run(stored_run_id(swept.uri) or "")
    assert parent.info.status == "FINISHED" and parent.data.tags["sweep"] == "tiny"
    better, worse = _places(record)
    assert parent.data.metrics["best/loss/contrastive_web"] == record.settings[better].trial(0).scores[STEPS][0]
    assert f"best: setting {better} (" in (note := parent.data.tags["mlflow.note.content"])
    artifacts = {one.path for one in client.list_artifacts(parent.info.run_id)}
    assert artifacts == {"best.yaml", "pictures", "settings.csv"}
    for number, status, step in ((better, "FINISHED", STEPS), (worse, "SCHEDULED", RUNG)):
        child = client.get_run(stored_run_id(swept.trial(number).uri) or "")
        tags = {"mlflow.parentRunId": parent.info.run_id, "sweep": "tiny", "setting": str(number)}
        assert child.info.status == status and tags.items() <= child.data.tags.items()
        values = record.settings[number].values
        assert child.data.params["objective.alpha"] == str(float(values["objective.alpha"]))
        scores = record.settings[number].trial(0).scores
        assert child.data.metrics["final/loss/contrastive_web"] == scores[step][0]
        assert child.data.metrics["best/loss/contrastive_web"] == min(score for (score,) in scores.values())
        assert child.info.run_id in note


@pytest.mark.slow
def test_the_page_holds_the_result_and_pictures_and_needs_nothing_else(swept, record):
    page = Path(swept.uri, "sweep.html").read_text()
    assert f"best: setting {_places(record)[0]} (" in page and page.count("data:image/png") > 4
    assert "http" not in page.replace("http-equiv", "") and "<script" not in page


@pytest.mark.slow
def test_compare_shows_what_the_trials_see_in_scenes_and_in_files(swept, record, tmp_path, capsys):
    runs, page = [swept.trial(number).uri for number in _places(record)], tmp_path / "page.html"
    words = ("compare", *runs, "--metric", "loss/contrastive_web", "--html", str(page))
    assert _command(capsys, *words, "--images", "scenes")[0] == 0
    text = page.read_text()
    assert f"step {RUNG}</label>" in text and f"step {STEPS}</label>" in text
    assert text.count('class="pixels"') == 2 * 6 * 2, "six maps of two runs, for two steps"
    folder = tmp_path / "photos"
    folder.mkdir()
    code, said = _command(capsys, *words, "--images", str(folder))
    assert code == 2 and "photos: no file is there" in said
    for number in range(3):
        Image.new("RGB", (40, 30), (80 * number, 0, 0)).save(folder / f"{number}.png")
    (folder / "notes.txt").write_text("no image")
    assert _command(capsys, *words, "--images", str(folder))[0] == 0
    assert page.read_text().count("→</td>") == 2 * 2, "two of three images are queries"
    (folder / "0.png").unlink()
    (folder / "1.png").unlink()
    code, said = _command(capsys, *words, "--images", str(folder))
    assert code == 2 and "1 of its first 2 files are images, at least two are needed" in said
    code, said = _command(capsys, *words[:-2], "--images", "scenes")
    assert code == 2 and "--images (scenes) is shown on the page: give --html FILE as well" in said


@pytest.mark.slow
def test_every_metric_that_a_run_logs_has_a_known_name(swept):
    lines = swept.trial(0).read_metrics()
    logged = {name for line in lines for name in line} - {"step", "time"}
    assert logged <= {*LOGGED_METRICS} and {*LOGGED_METRICS} - logged <= {"mfu", "checkpoint_stall_ms", *WINDOWED}


@pytest.mark.slow
def test_the_same_command_again_trains_nothing_and_tells_the_result(swept, capsys):
    before = {number: swept.trial(number).read_events() for number in (0, 1)}
    code, said = _command(capsys, "sweep", swept.path, "--without-ray")
    assert code == 0 and "tiny goes on" in said and "best: setting" in said
    assert "next: tips-ray pretrain" in said and "one seed says little about small differences" in said
    assert {number: swept.trial(number).read_events() for number in (0, 1)} == before


@pytest.mark.slow
def test_changes_under_which_scores_mean_nothing_are_refused(swept, capsys):
    for change, key in (
        ("run.schedule.total_steps=8", "run.schedule.total_steps: 6 -> 8"),
        ("run.views.mask_ratio=0.5", "run.views.mask_ratio: 0.75 -> 0.5"),
        ("rungs=[2]", "rungs differs"),
        ("scores=[{metric: grad_norm, better: lower}]", "scores differs"),
        ("run.objective.center_momentum=0.5", "run.objective.center_momentum: 0.9 -> 0.5"),
    ):
        code, said = _command(capsys, "sweep", swept.path, "--without-ray", change)
        assert code == 2 and key in said and "has scores that depend on it" in said
    assert yaml.safe_load(Path(swept.uri, "sweep.yaml").read_text())["rungs"] == [RUNG]


@pytest.mark.slow
def test_other_data_are_refused(swept, tmp_path, capsys):
    write_scenes(tmp_path / "scenes", 8)
    before, other = Path(swept.uri, "sweep.yaml").read_text(), f"run.data.sources=[{{uri: {tmp_path}/scenes}}]"
    code, said = _command(capsys, "sweep", swept.path, "--without-ray", other)
    assert code == 2 and f"the data are not those that {swept.uri} began with" in said
    assert Path(swept.uri, "sweep.yaml").read_text() == before


@pytest.mark.slow
def test_sweeps_shows_lists_adds_and_promotes(swept, record, capsys):
    better, worse = _places(record)
    code, said = _command(capsys, "sweeps", "list", str(Path(swept.uri).parent))
    assert code == 0 and f"{swept.uri}  2         1         setting {better} at step {STEPS}  none" in said
    code, said = _command(capsys, "sweeps", "show", swept.uri)
    assert code == 0 and said.splitlines()[1].startswith(f"{better} ") and f"paused at step {RUNG}" in said
    code, said = _command(capsys, "sweeps", "add", swept.uri, "objective.alpha=3", "objective.beta=1")
    assert (code, said) == (0, "setting 2 is added; tips-ray sweep with the sweep's config trains it\n")
    code, said = _command(capsys, "sweeps", "promote", swept.uri, str(worse))
    assert code == 0 and f"setting {worse} may train to step {STEPS}" in said
    changed = Record(swept.uri).settings
    whole = {"objective.alpha": 3, "objective.beta": 1, "objective.student_temperature": 0.1}  # the run's own
    assert changed[2].values == whole and changed[2].granted == RUNG
    assert changed[worse].granted == STEPS


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("show", "nowhere"), "nowhere is no sweep: it has no sweep.yaml"),
        (("stop", "SWEEP"), "nothing trains it now"),
        (("add", "SWEEP"), "give the setting's values, such as objective.alpha=1"),
        (("add", "SWEEP", "objective.alpha=30"), "objective.alpha=30 lies outside of the sweep's space"),
        (("add", "SWEEP", "views.flip=0.1"), "views.flip is no key of the sweep's space"),
        (("add", "SWEEP", "objective.beta=2"), "setting 0 has these values"),
        (("promote", "SWEEP", "0", "6", "7"), "promote takes SETTING and STEP, not '7' as well"),
        (("add", "SWEEP", "objective.alpha=many"), "objective.alpha: Input should be a valid number"),
        (("promote", "SWEEP"), "SETTING (missing) must be the number of a setting: 0 to"),
        (("promote", "SWEEP", "77"), "SETTING (77) must be the number of a setting"),
        (("show", "SWEEP", "more"), "show takes no 'more'"),
    ],
)
def test_mistakes_with_sweeps_are_sentences(words, sentence, swept, capsys):
    code, said = _command(capsys, "sweeps", *(swept.uri if word == "SWEEP" else word for word in words))
    assert code == 2 and sentence in said and "Traceback" not in said


@pytest.mark.slow
def test_a_second_driver_is_refused(swept, capsys):
    with leased(swept.uri):
        for words in (("sweep", swept.path, "--without-ray"), ("sweeps", "add", swept.uri, "objective.alpha=2")):
            code, said = _command(capsys, *words)
            assert code == 2 and "works on this sweep; wait for it, or end it with tips-ray sweeps stop" in said


@pytest.mark.slow
def test_a_dry_run_checks_and_shows_the_first_settings(swept, capsys):
    code, said = _command(capsys, "sweep", swept.path, "--dry-run", "name=new", "settings=30")
    assert code == 0 and said.startswith(
        "forecast   in all 30 trials, about 135 steps (75% of training all to the end)"
    )
    assert said.count("setting ") == 10 and "(prior)" in said
    assert not storage.exists(f"{swept.config.storage}/new/sweep.yaml")
    code, said = _command(capsys, "sweep", swept.path, "--dry-run", "name=new", "run.data.sources=[{uri: nowhere}]")
    assert code == 2 and "nowhere" in said


def test_the_run_of_a_sweep_may_be_a_file(tmp_path, capsys):
    run = tiny_sweep(tmp_path).run
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "mine", **run}))
    tree = tiny_sweep(tmp_path).model_dump(mode="json", exclude_none=True) | {"run": str(tmp_path / "run.yaml")}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    code, said = _command(capsys, "sweep", str(tmp_path / "sweep.yaml"), "run.schedule.total_steps=0", "--dry-run")
    assert code == 2 and "schedule.total_steps: Input should be greater than 0" in said
    code, said = _command(capsys, "sweep", str(tmp_path / "run.yaml"), "--dry-run")
    assert code == 2 and "Traceback" not in said


def test_a_run_beside_the_sweeps_file_is_found_and_single_keys_of_the_space_may_be_replaced(tmp_path):
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"name": "mine", **tiny_sweep(tmp_path).run}))
    tree = tiny_sweep(tmp_path).model_dump(mode="json", exclude_none=True) | {"run": "run.yaml"}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    words = ["space.objective.alpha.prior=2", "space.objective.beta={uniform: [1, 3]}", "settings=7"]
    config = load_sweep(tmp_path / "sweep.yaml", words)
    alpha, beta = config.space["objective.alpha"], config.space["objective.beta"]
    assert (alpha.prior, alpha.loguniform, beta.uniform, beta.prior, config.settings) == (2, (0.1, 10), (1, 3), None, 7)


def test_single_values_of_a_list_may_be_replaced(tmp_path):
    listed = {"small": {"objective.alpha": 0.3}, "large": {"objective.alpha": 3}}
    config = tiny_sweep(tmp_path, "a", space={}, settings=None, listed=listed)
    tree = config.model_dump(mode="json", exclude_none=True, exclude={"space"})
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    changed = load_sweep(
        tmp_path / "sweep.yaml", ["listed.small.objective.alpha=0.5", "listed.large={objective.alpha: 4}"]
    )
    assert changed.listed == {"small": {"objective.alpha": 0.5}, "large": {"objective.alpha": 4}}


def test_a_damaged_sweep_is_a_sentence_and_a_row_of_the_list(tmp_path, capsys):
    for name in ("whole", "record", "config"):
        (tmp_path / name).mkdir()
        config = tiny_sweep(tmp_path, name=name).model_dump(mode="json", exclude_none=True)
        (tmp_path / name / "sweep.yaml").write_text(yaml.safe_dump(config))
        run_all(queue(tiny_sweep(tmp_path, name=name), f"{tmp_path}/{name}"))
    (lines,) = (tmp_path / "record" / "record").iterdir()
    lines.write_text("".join(lines.read_text().splitlines(keepends=True)[1:]))
    (tmp_path / "config" / "sweep.yaml").write_text("name: [")
    code, said = _command(capsys, "sweeps", "list", str(tmp_path))
    rows = {Path(line.split()[0]).name: line for line in said.splitlines()[1:]}
    assert code == 0 and "damaged: " in rows["record"] and "damaged: " in rows["config"]
    assert "setting" in rows["whole"] and "damaged: " not in rows["whole"]
    code, said = _command(capsys, "sweeps", "show", f"{tmp_path}/record")
    assert code == 2 and "does not follow from those before it" in said and "restore the file from a copy" in said


def test_the_forecast_counts_what_there_is():
    def told(**values: Any) -> str:
        config = tiny_sweep("a", **{"settings": 10, **values})
        return forecast(config, run_of(config, {}), 36.0)

    space = {"objective.alpha": {"choice": [1, 2]}}
    assert "in all 2 trials, about 16 steps (67% of training all to the end), about 0.16" in told(space=space)
    assert "in all 2 trials, about 24 steps, about" in told(space=space, scheduler="none")
    ranges = {"objective.alpha": {"uniform": [1, 2]}}
    assert "in all 10 trials, about 120 steps, about 1.20 trial-hours" in told(space=ranges, scheduler="pbt")
    assert "in all 30 trials, about 204 steps (57% of training all" in told(replicas=3)  # 3 x (40 + 20 + 8)
    assert "in all 10 trials, about 60 steps (75% of training all" in told(until=8)
    gpus: dict[str, Any] = {"run__resources__workers": 2, "run__resources__gpus_per_worker": 1}
    assert "1.20 trial-hours (2.40 GPU-hours); " in told(space=ranges, scheduler="none", **gpus)


@pytest.mark.slow
def test_the_config_of_a_child_trained_once_gives_the_curve_of_its_population(tmp_path):
    """A child has its donor's steps up to the rung, then its own; the same config from the start has both, bitwise."""
    space = {"objective.alpha": {"loguniform": [0.1, 10]}, "schedule.peak_lr": {"loguniform": [1e-4, 1e-2]}}
    data = write_scenes(tmp_path / "scenes", 16)
    config = _sweep(tmp_path, data, scheduler="pbt", space=space, search="random")
    assert main(["sweep", _written(config), "--without-ray"]) == 0
    uri = f"{tmp_path}/tiny"
    settings = Record(uri).settings
    child = settings[2]
    (donor,) = (one for one in (settings[0], settings[1]) if not one.ended)
    assert child.by == f"child of {donor.number}" and sorted(child.trial(0).scores) == [RUNG, STEPS]
    child_lines, donor_lines = (metrics_of_run(RunFolder(f"{uri}/runs/{trial_name(n, 0)}")) for n in (2, donor.number))
    assert child_lines[:RUNG] == donor_lines[:RUNG] and child_lines[-1] != donor_lines[-1]
    values = {**child.values, "captions.tokenizer": f"{uri}/tokenizer.json", "storage": str(tmp_path / "alone")}
    alone = pretrain(run_of(config, values, trial_name(2, 0)), RankTrainer())
    assert metrics_of_run(RunFolder(alone)) == child_lines
