"""The queue of a sweep and its record: what is trained, in which order, killed anywhere, extended."""

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from toy_sweep import SPACE, bowl, measured, queue, run_all, tiny_sweep

from tips_ray import storage
from tips_ray.config.load import override
from tips_ray.config.sweep import SweepConfig
from tips_ray.errors import RunFailedError
from tuning.sweeps import population
from tuning.sweeps.population import current_values
from tuning.sweeps.queue import Room, Sweep
from tuning.sweeps.record import Record
from tuning.sweeps.search import next_values, study_of
from tuning.sweeps.summary import Summary
from tuning.sweeps.trial import Job, Outcome, is_on_rank


class _Killed(Exception):
    pass


def _lines(folder: str) -> list[dict]:
    return [json.loads(line) for path in sorted(Path(folder, "record").iterdir()) for line in path.open()]


def _untimed(folder: str) -> list[dict]:
    return [{key: value for key, value in line.items() if key != "time"} for line in _lines(folder)]


def test_a_sweep_trains_the_best_to_the_end_and_others_up_to_the_rung_where_they_are_beaten(tmp_path):
    sweep = queue(tiny_sweep("a"), str(tmp_path))
    ended = run_all(sweep)
    rungs, settings = sweep.rungs, sweep.settings
    assert len(settings) == 6 and settings[0].by == "prior"
    at = {step: [one.number for one in rungs.ranked(settings, step)] for step in rungs.steps}
    assert at[4] == sorted(range(6), key=lambda number: bowl(settings[number].values, 0, 4))
    assert set(at[4][:3]) <= set(at[8]) and at[12][0] == at[4][0], "half of six go on, and the best to the end"
    assert len(ended) == len(set(ended)) == sum(map(len, at.values())), "no trial reaches a rung twice"
    summary = Summary(sweep.config, sweep.record)
    winner = summary.winner()
    assert winner and winner[0].number == at[12][0] and summary.state(winner[0]) == "complete"


@pytest.mark.parametrize("at_a_time", [1, 3])
def test_a_sweep_killed_after_any_line_goes_on_to_the_same_end(at_a_time, tmp_path, monkeypatch):
    """Each start writes one more line and is killed before the next; running trials are lost with it."""
    config = tiny_sweep("a", replicas=2)
    run_all(queue(config, str(tmp_path / "whole")))
    monkeypatch.setattr(Record, "_write", _killing(Record._write))
    folder, starts = str(tmp_path / "killed"), 0
    while True:
        starts += 1
        try:
            run_all(queue(config, folder), at_a_time=at_a_time)
            break
        except _Killed:
            continue
    assert starts == len(_lines(folder)) > 25
    if at_a_time == 1:
        assert _untimed(folder) == _untimed(str(tmp_path / "whole"))
    settings = Record(folder).settings
    scored = [(line["setting"], line["seed"], line["step"]) for line in _lines(folder) if line["kind"] == "score"]
    assert len(settings) == 6 and len(scored) == len(set(scored)), "nothing that has a score runs again"
    assert settings == Record(folder).settings


def _killing(write):
    def written(self, kind: str, **what) -> None:
        if getattr(self, "is_killed", False):
            raise _Killed
        self.is_killed = True
        write(self, kind, **what)

    return written


def test_a_line_that_a_kill_has_cut_does_not_count(tmp_path):
    run_all(queue(tiny_sweep("a"), str(tmp_path)))
    (path,) = Path(tmp_path, "record").iterdir()
    whole = path.read_text()
    path.write_text(whole[:-20])
    sweep = queue(tiny_sweep("a"), str(tmp_path))
    run_all(sweep)
    last = json.loads(whole.splitlines()[-1])
    assert sweep.record.settings[last["setting"]].trial(0).scores[last["step"]] == tuple(last["scores"])
    assert sum(map(len, (one.trial(0).scores for one in sweep.settings))) == whole.count('"score"')


@pytest.mark.heavy
def test_the_record_on_s3_is_the_same(s3, tmp_path):
    config, uri = tiny_sweep("a", settings=2), f"{s3.make_bucket('sweeps')}/one"
    for place in (uri, str(tmp_path)):
        run_all(queue(config, place))
    assert Record(uri).settings == Record(str(tmp_path)).settings
    assert len(storage.list_names(f"{uri}/record")) == len(_lines(str(tmp_path))), "a part for each line"


def test_proposals_are_functions_of_config_and_record(tmp_path):
    config = tiny_sweep("a", settings=14, scheduler="none")
    sweep = queue(config, str(tmp_path))
    run_all(sweep)
    by = [one.by for one in sweep.settings]
    assert by == ["prior", *["random"] * 9, "tpe", "tpe", "random", "tpe"]
    for count in (10, 13):
        known = sweep.settings[:count]
        found = next_values(config, sweep.rungs, known)
        assert found == (sweep.settings[count].values, "tpe") == next_values(config, sweep.rungs, known)
    other = tiny_sweep("a", settings=14, seed=1)
    assert next_values(other, sweep.rungs, sweep.settings[:10]) != next_values(config, sweep.rungs, sweep.settings[:10])


def test_optuna_finds_the_bottom_sooner_than_chance(tmp_path):
    """Distances of the proposals from the bottom, after 20 settings, over three seeds of the search."""
    space = {key: {name: value for name, value in SPACE[key].items() if name != "prior"} for key in SPACE}
    means = {}
    for search in ("tpe", "random"):
        late = []
        for seed in range(3):
            config = tiny_sweep("a", search=search, settings=28, scheduler="none", rungs=[], seed=seed, space=space)
            sweep = queue(config, str(tmp_path / f"{search}{seed}"))
            run_all(sweep)
            late += [bowl(one.values, 0, 10**9) for one in sweep.settings[20:] if one.by == search]
        means[search] = sum(late) / len(late)
    assert means["tpe"] < 0.65 * means["random"], means


def test_the_study_holds_each_setting_with_a_constraint_for_a_collapse_and_never_nan(tmp_path):
    sweep = queue(tiny_sweep("a"), str(tmp_path))
    ends = {1: Outcome("violated", why="collapsed at step 3"), 2: Outcome("scored", (float("nan"),))}
    while job := sweep.next_job():
        sweep.done(job, ends.get(job.setting) or measured(sweep, job))
    assert sweep.record.settings[1].ended == "seed 0: collapsed at step 3"
    assert sweep.record.settings[2].ended == "seed 0: a score at step 4 is not a finite number"
    study = study_of(sweep.config, sweep.rungs, sweep.settings)
    values, constraints = zip(*((trial.values, trial.constraints) for trial in study.trials), strict=True)
    assert [sum(one.values()) for one in constraints] == [0, 1, 1, 0, 0, 0]
    assert all(one is not None and abs(one[0]) < 1e31 for one in values)
    assert {trial.user_attrs["rung"] for trial in study.trials} == {4}, "scores are compared at one rung"


def test_a_trial_that_fails_is_tried_again_and_its_setting_given_up_after_three_times(tmp_path):
    sweep, failures = queue(tiny_sweep("a"), str(tmp_path)), 0
    while job := sweep.next_job():
        fails = job.setting == 1 and failures < 3 or (job.setting, job.step, failures) == (0, 8, 3)
        failures += fails
        sweep.done(job, Outcome("failed", why="the machine is gone") if fails else measured(sweep, job))
    assert failures == 4
    assert sweep.record.settings[1].ended == "seed 0 failed 3 times, the last time since the machine is gone"
    assert 8 in sweep.record.settings[0].trial(0).scores and not sweep.record.settings[0].trial(0).failures


def test_a_sweep_whose_trials_all_fail_ends_with_the_reason(tmp_path):
    sweep = queue(tiny_sweep("a", settings=50), str(tmp_path))
    jobs = 0
    while job := sweep.next_job():
        jobs += 1
        sweep.done(job, Outcome("failed", why="no such device"))
    assert jobs == 9 and isinstance(sweep.failure, RunFailedError)
    assert str(sweep.failure).startswith("3 settings failed and none has a score; setting 2: seed 0 failed 3 times")


def test_what_was_given_up_is_tried_again_by_the_next_start(tmp_path):
    folder = str(tmp_path)
    sweep = queue(tiny_sweep("a"), folder)
    while job := sweep.next_job():
        sweep.done(job, Outcome("failed", why="the disk is full"))
    assert sweep.failure and len(sweep.settings) == 3
    mended = queue(tiny_sweep("a"), folder)
    mended.record.start()
    ended = run_all(mended)
    assert {setting for setting, _, _ in ended} == set(range(6)) and not any(one.ended for one in mended.settings)
    assert Record(folder).settings == mended.record.settings


def test_a_score_that_no_run_has_ends_the_sweep_at_once(tmp_path):
    sweep = queue(tiny_sweep("a"), str(tmp_path))
    job = sweep.next_job()
    assert job
    sweep.done(job, Outcome("unscorable", why="task depth has no score rmse; it has rmse_m"))
    assert sweep.next_job() is None and str(sweep.failure) == "scores: task depth has no score rmse; it has rmse_m"


def _known(sweep: Sweep) -> dict:
    return {
        (one.number, seed, step): score
        for one in sweep.record.settings.values()
        for seed, trial in one.trials.items()
        for step, score in trial.scores.items()
    }


def test_more_settings_and_seeds_extend_a_sweep_without_training_anything_again(tmp_path):
    folder = str(tmp_path)
    run_all(first := queue(tiny_sweep("a"), folder))
    before = _known(first)
    again = run_all(queue(tiny_sweep("a"), folder))
    assert again == [], "the same command does nothing"
    more = queue(tiny_sweep("a", settings=9), folder)
    ended = run_all(more)
    assert len(more.settings) == 9 and not before.keys() & set(ended)
    seeds = queue(tiny_sweep("a", settings=9, replicas=2), folder)
    ended = run_all(seeds)
    assert {seed for _, seed, _ in ended} == {1} and {setting for setting, _, _ in ended} == set(range(9))
    assert _known(seeds).items() >= before.items()


def test_listed_settings_are_trained_in_their_order_and_those_taken_from_the_list_no_longer_count(tmp_path):
    one, two, three = ({"objective.alpha": a, "objective.beta": b, "objective.student_temperature": 0.1}
                       for a, b in ((1.0, 1.0), (2.0, 1.0), (1.0, 3.0)))  # fmt: skip
    others = {"space": {}, "settings": None, "scheduler": "none", "rungs": []}
    first = queue(tiny_sweep("a", **others, listed={"one": one, "two": two}), str(tmp_path))
    assert run_all(first) == [(0, 0, 12), (1, 0, 12)]
    changed = tiny_sweep("a", **others, listed={"two": two, "three": three})
    assert changed == override(SweepConfig, changed.model_dump(mode="json"), {}), "a written config is read again"
    second = queue(changed, str(tmp_path))
    assert run_all(second) == [(2, 0, 12)]
    assert [(setting.number, setting.by) for setting in second.settings] == [(1, "two"), (2, "three")]
    flips = {"two": {**two, "views.flip": 0.25}, "own": {**three, "views.flip": second.base.views.flip}}
    third = queue(tiny_sweep("a", **others, listed=flips), str(tmp_path))
    assert run_all(third) == [(3, 0, 12)], "a row with the run's value for a new key is the old one"
    summary = Summary(third.config, third.record)
    assert [(one.number, summary.by(one)) for one in third.settings] == [(2, "own"), (3, "two")], "names of today"


def test_in_a_narrower_space_only_settings_that_lie_there_count(tmp_path):
    folder = str(tmp_path)
    run_all(first := queue(tiny_sweep("a"), folder))
    narrow = {**SPACE, "objective.alpha": {"loguniform": [0.5, 4]}}
    second = queue(tiny_sweep("a", space=narrow), folder)
    kept = [one.number for one in second.settings]
    assert 0 < len(kept) < 6 and kept == [
        one.number for one in first.settings if 0.5 <= one.values["objective.alpha"] <= 4
    ]
    run_all(second)
    assert len(second.settings) == 6 and len(second.record.settings) == 12 - len(kept)
    assert Summary(second.config, second.record).outside == 6 - len(kept)


def test_the_budget_ends_a_sweep(tmp_path):
    sweep = queue(tiny_sweep("a", budget__trial_hours=4.5 / 3600), str(tmp_path))
    assert len(run_all(sweep)) == 5 and sweep.stops_because.startswith("budget.trial_hours (0.00125) is used")
    shutil.rmtree(tmp_path / "record")
    gpus = queue(tiny_sweep("a", budget__gpu_hours=3 / 3600, run__resources__gpus_per_worker=2), str(tmp_path))
    assert len(run_all(gpus)) == 2, "two GPUs for a second each time"


def test_trials_share_the_room_and_the_last_ones_get_what_is_free(tmp_path):
    """Room for 5 workers in two trials; a batch of 8 trains on 1, 2 or 4 workers. Each job is a way to a rung."""
    workers: dict[str, Any] = {"run__resources__workers": 4, "run__resources__min_workers": 1}
    workers["run__resources__gpus_per_worker"] = 1
    sizes = {"run__global_batch_images": 8, "settings": 3, "keep": 3, "rungs": [6]}
    sweep = queue(tiny_sweep("a", **workers, **sizes), str(tmp_path))
    assert not is_on_rank(sweep.base), "one worker of several is no trial inside an actor"
    sweep.room = Room(trials=2, workers=5)

    def start() -> Job:
        assert (job := sweep.next_job())
        return job

    first, second = start(), start()
    assert [job.run.resources.workers for job in (first, second)] == [2, 2]
    sweep.done(first, measured(sweep, first))
    third = start()
    assert third.run.resources.workers == 2, "3 are free, and nothing else waits"
    for job in (second, third):
        sweep.done(job, measured(sweep, job))
    last = start()
    assert (last.step, last.run.resources.workers) == (12, 4), "alone, from its checkpoint"
    sweep.done(last, measured(sweep, last))
    assert {job.run.images_per_pass for job in (first, second, third, last)} == {2}, "more passes, not larger ones"
    assert sweep.record.seconds == 4 and sweep.record.gpu_seconds == 2 + 2 + 2 + 4
    sweep.room = None
    assert sweep.job(sweep.settings[0], 0, 6).run.resources.workers == 4


def test_a_rung_is_judged_by_how_it_ranks_settings_against_the_end(tmp_path):
    def turned(values, seed: int, step: int) -> float:
        return (step == 4) * -2 * bowl(values, seed, 12) + bowl(values, seed, 12)

    sweep = queue(tiny_sweep("a", scheduler="none"), str(tmp_path))
    run_all(sweep, turned)
    first, second = Summary(sweep.config, sweep.record).predictions()
    assert (first.correlation, second.correlation) == (-1, 1)
    assert str(first) == "the rung at step 4 does not predict the end: rank correlation -1.00 over 6 settings"
    assert str(second) == "the rung at step 8 predicts the end: rank correlation 1.00 over 6 settings"


PBT = {
    "scheduler": "pbt",
    "settings": 4,
    "space": {key: SPACE[key] for key in ("objective.alpha", "objective.beta")},
}


def _alpha(values, seed: int, step: int) -> float:
    """Lower for a lower alpha."""
    return current_values(tiny_sweep("a", **PBT), values)["objective.alpha"] + 1 / step


def test_a_child_of_the_best_takes_the_place_of_the_worst_at_each_rung(tmp_path, monkeypatch):
    copied = []
    monkeypatch.setattr(population, "_copy_history", lambda *places: copied.append(places))
    sweep = queue(tiny_sweep("a", **PBT), str(tmp_path))
    run_all(sweep, _alpha)
    settings = sweep.record.settings
    first = sorted(range(4), key=lambda number: settings[number].values["objective.alpha"])
    child = settings[4]
    assert child.by == f"child of {first[0]}" and settings[first[-1]].ended == "replaced by setting 4"
    donor = settings[first[0]]
    assert child.trial(0).scores[4] == donor.trial(0).scores[4], "it has the donor's history"
    (change,) = child.values["schedule.changes"]
    assert (
        change["from_step"] == 4
        and change["alpha"] / donor.values["objective.alpha"] == pytest.approx(1.2, rel=1e-5)
        or change["alpha"] / donor.values["objective.alpha"] == pytest.approx(1 / 1.2, rel=1e-5)
    )
    assert {**donor.values, "schedule.changes": [change]} == child.values
    assert len(settings) == 6 and [sorted(settings[4].trial(0).scores), sorted(settings[5].trial(0).scores)][1] == [
        4,
        8,
        12,
    ]
    assert [place[2] for place in copied] == [4, 8] and copied[0][0].endswith(f"setting-{first[0]:04d}-seed-0")
    assert run_all(queue(tiny_sweep("a", **PBT), str(tmp_path)), _alpha) == []


def test_a_population_killed_after_any_line_goes_on_to_the_same_end(tmp_path, monkeypatch):
    monkeypatch.setattr(population, "_copy_history", lambda *places: None)
    run_all(queue(tiny_sweep("a", **PBT), str(tmp_path / "whole")), _alpha)
    monkeypatch.setattr(Record, "_write", _killing(Record._write))
    for _ in _lines(str(tmp_path / "whole")):
        with contextlib.suppress(_Killed):
            run_all(queue(tiny_sweep("a", **PBT), str(tmp_path / "killed")), _alpha)
    assert _untimed(str(tmp_path / "killed")) == _untimed(str(tmp_path / "whole"))


def test_a_member_that_collapsed_is_replaced_too(tmp_path, monkeypatch):
    monkeypatch.setattr(population, "_copy_history", lambda *places: None)
    sweep = queue(tiny_sweep("a", **PBT), str(tmp_path))
    while job := sweep.next_job():
        fell = job.setting == 1
        sweep.done(job, Outcome("violated", why="collapsed") if fell else measured(sweep, job, _alpha))
    ended = {number: one.ended for number, one in sweep.record.settings.items() if one.ended}
    assert len(ended) == 3 and ended[1].startswith("replaced by setting")
    assert sum(12 in one.trial(0).scores for one in sweep.settings) == 4


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"space": SPACE}, "space.objective.student_temperature: scheduler .pbt. changes values during a run"),
        ({"space": {"views.mask_ratio": {"uniform": [0.1, 0.5]}}}, "space.views.mask_ratio: scheduler .pbt."),
        ({"rungs": []}, "scheduler .pbt. needs rungs, at least 2 settings, and replicas .1."),
        ({"replicas": 2}, "members share a seed"),
    ],
)
def test_a_population_that_cannot_change_is_refused(values, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_sweep("a", **{**PBT, **values})
