"""The space of a sweep: what it takes, draws and refuses."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from toy_sweep import SPACE, tiny_sweep

from tips_ray.config.space import DomainConfig
from tips_ray.errors import Faults
from tuning.sweeps.run import checked
from tuning.sweeps.space import grid, lies_in, prior_values, random_values, require_valid, run_of

PUBLISHED = {"objective.alpha": 1, "objective.beta": 2, "objective.student_temperature": 0.1}

LISTED = {"space": {}, "settings": None, "listed": {"a": {"objective.alpha": 1}}}
BATCHES = {"global_batch_images": {"choice": [8, 16]}}
LIVE = {"source": "live", "captioner": {"model": "a folder"}}
SUITE = {"data": {"scenes": {"kind": "scenes"}}, "tasks": {"found": {"kind": "retrieval", "data": "scenes"}}}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"space": {"objective.alhpa": {"uniform": [0, 1]}}}, "objective.alhpa: Extra inputs.*mean objective.alpha"),
        ({"space": {"objective.beta": {"uniform": [-1, 1]}}}, "space.objective.beta .-1.0.: .*not -1.0"),
        ({"space": {"objective.beta": {"uniform": [1, 1]}}}, "uniform .1 to 1. is empty"),
        ({"space": {"objective.beta": {"loguniform": [0, 1]}}}, "loguniform .0 to 1. must begin above 0"),
        ({"space": {"objective.beta": {"choice": [1, 2, 1]}}}, "choice .* names a value twice"),
        (
            {"space": {"objective.beta": {"choice": [1], "uniform": [1, 2]}}},
            "give one of choice, .* choice and uniform",
        ),
        ({"space": {"objective.beta": {"uniform": [1, 2], "prior": 3}}}, "prior .3. must be a value of uniform"),
        ({"space": {"seed": {"choice": [1, 2]}}}, "space.seed: set replicas"),
        ({"space": {"resources.workers": {"choice": [1, 2]}}}, "space.resources.workers: it changes how fast"),
        ({"space": {"schedule.total_steps": {"choice": [10]}}}, "all settings train equally long"),
        ({"space": {"image.width": {"choice": [16, 32]}}}, "space.image.width .32.: text.width .16. must equal"),
        ({"space__objective": {"uniform": [0, 1]}}, "space.objective is a section .* such as objective.alpha"),
        ({"space": {"schedule": {"choice": [{"total_steps": 2}]}}}, "space.schedule is a section of the config"),
        ({"space": {"image.depth": {"uniform": [1, 3]}}}, "space.image.depth .1.74.: .*valid integer"),
        ({"until": 5}, "until .5. must be one of rungs"),
        ({"rungs": [8, 4]}, "rungs .* must rise"),
        ({"rungs": [4, 12]}, "rungs .12. must be below run.schedule.total_steps .12."),
        ({"settings": None}, "search .tpe. needs the number of settings"),
        ({"search": "grid"}, "space.objective.alpha: a grid needs points"),
        ({"scores": [{"metric": "loss/total", "better": "lower"}]}, "loss/total. is the sum .*alpha, objective.beta"),
        ({"scores": [{"metric": "loss/contrastive_web"}]}, "scores.0.better: Field required"),
        ({"scores": [{"metric": "loss/contrastive", "better": "lower"}]}, "logged by no run; did you mean loss/contra"),
        ({"scores": [{"task": "depth", "score": "rmse_m", "better": "lower"}]}, "depth. must be a task of the suite"),
        ({"scores": [{"task": "depth", "better": "lower"}]}, "give metric, or task and score"),
        ({"scenes": 10}, "scenes .10. and run.data.sources: leave one of them out"),
        ({"search": "listed"}, "search .listed. needs listed"),
        ({"space": {}}, "space: it needs at least one key"),
        ({"space": {}, "search": "tpe", "listed": {"a": {"objective.alpha": 1}}}, "search .tpe. and listed: leave one"),
        ({"listed": {"a": {"objective.alpha": 1}}}, "space and listed: leave one of them out"),
        ({"space": {"objective.alpha": 3}, "listed": {"a": {"objective.alpha": 3}}}, "space and listed: leave one"),
        ({"space": {"captions.source": {"choice": ["column"]}}}, "captions.source: all settings train on the same"),
        (
            {"space": BATCHES, "run__captions": LIVE},
            "global_batch_images: captions.source .live. makes captions",
        ),
        ({**LISTED, "listed__b": {}}, "listed.b and listed.a must have the same keys; one lacks objective.alpha"),
        ({**LISTED, "listed__b": {"objective.alpha": 1}}, "listed.a and listed.b have the same values"),
        ({**LISTED, "listed__b": {"objective.alpha": -1}}, "listed.b: objective.alpha: .*greater than or equal to 0"),
        ({**LISTED, "listed": 3}, "listed: Input should be a mapping"),
        (
            {"suite": SUITE, "scores": [{"task": "found", "score": "{wab}/recall", "better": "higher"}]},
            "scores.0: score .wab. must be one of web, synthetic",
        ),
        ({"run__schedule__total_steps": 0}, "run.schedule.total_steps: .*greater than 0"),
        ({"run__evaluation__patience": 2}, "run.evaluation.patience ends a run by itself"),
        ({"space": {"evaluate_every_steps": {"choice": [4, 8]}}}, "evaluate_every_steps.* changes no numbers"),
    ],
)
def test_a_wrong_sweep_is_refused_at_once_with_key_value_and_rule(values, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence):
        checked(tiny_sweep(tmp_path, **values))


def test_conditions_must_name_another_key_and_no_circle():
    when = {"objective.alpha": {"uniform": [0, 1], "when": {"key": "objective.beta", "above": 1}}}
    with pytest.raises(Faults, match="must be another key of the space: none"):
        tiny_sweep("a", space=when)
    circle = {**when, "objective.beta": {"uniform": [0, 2], "when": {"key": "objective.alpha", "above": 0.5}}}
    with pytest.raises(Faults, match="alpha, objective.beta wait for each other"):
        tiny_sweep("a", space=circle)


@pytest.mark.parametrize(
    ("when", "sentence"),
    [
        ({"key": "objective.teacher", "above": 0.5}, "above and below need numbers, and objective.teacher has others"),
        ({"key": "objective.teacher", "among": ["ema_haeds"]}, "among .ema_haeds. is no value of objective.teacher"),
        ({"key": "objective.alpha", "above": 20}, "it holds never"),
        ({"key": "objective.alpha", "below": 20}, "it holds always"),
        ({"key": "objective.alpha", "above": 1, "among": [2]}, "needs either among"),
    ],
)
def test_a_condition_that_can_never_hold_is_refused(when, sentence):
    teacher = {"objective.teacher": {"choice": ["ema", "ema_heads"]}}
    space = {**SPACE, **teacher, "objective.visible_weight": {"uniform": [0, 1], "when": when}}
    with pytest.raises(ValueError, match=sentence):
        tiny_sweep("a", space=space)


def test_a_value_that_another_key_must_allow_is_taken():
    """Both widths must be equal, which no single key can bring about."""
    space = {"image.width": {"choice": [16, 32]}, "text.width": {"choice": [16, 32]}}
    config = tiny_sweep("a", space=space)
    require_valid(config)
    drawn = [random_values(config, number) for number in range(20)]
    assert {(one["image.width"], one["text.width"]) for one in drawn} == {(16, 16), (32, 32)}


def test_random_settings_are_functions_of_seed_and_number():
    one, other = tiny_sweep("a"), tiny_sweep("b", settings=60, replicas=3)
    assert [random_values(one, n) for n in range(5)] == [random_values(other, n) for n in range(5)]
    assert random_values(one, 1) != random_values(tiny_sweep("a", seed=1), 1)


def test_half_of_the_values_lie_near_the_belief_and_the_rest_everywhere():
    """Near: within two spreads of .15 of the way; by chance a uniform share lies there in 60 % (log 2 is at .65)."""
    config = tiny_sweep("a", space={"objective.beta": {"loguniform": [0.1, 10], "prior": 2}})
    shares = [math.log10(random_values(config, n)["objective.beta"]) / 2 + 0.5 for n in range(400)]
    place = math.log10(2) / 2 + 0.5
    near = np.mean([abs(share - place) < 0.15 for share in shares])
    assert 0.4 < near < 0.6  # .5 * .683 + .5 * .3 = .49
    plain = tiny_sweep("a", space={"objective.beta": {"loguniform": [0.1, 10]}})
    below_one = np.mean([random_values(plain, n)["objective.beta"] < 1 for n in range(400)])
    assert 0.43 < below_one < 0.57, "half of the logarithms lie below that of 1"


def test_whole_numbers_are_drawn_evenly_with_both_ends():
    domain = DomainConfig.model_validate({"integer": [2, 4]})
    counts = Counter(domain.at(share) for share in np.linspace(0, 1, 3001))
    assert sorted(counts) == [2, 3, 4] and max(counts.values()) - min(counts.values()) < 5


def test_a_grid_has_every_combination_once_although_a_condition_hides_keys():
    space = {
        "objective.beta": {"choice": [0, 2]},
        "objective.masked_teacher_temperature": {
            "uniform": [0.04, 0.08],
            "points": 3,
            "when": {"key": "objective.beta", "above": 0},
        },
    }
    found = list(grid(tiny_sweep("a", space=space, search="grid", settings=None)))
    key = "objective.masked_teacher_temperature"
    assert found == [{"objective.beta": 0}, *({"objective.beta": 2, key: value} for value in (0.04, 0.06, 0.08))]


def test_the_belief_is_a_setting_with_the_runs_own_values_elsewhere():
    assert prior_values(tiny_sweep("a")) == PUBLISHED
    assert prior_values(tiny_sweep("a", space={"objective.beta": {"uniform": [1, 3]}})) is None


@pytest.mark.parametrize(
    ("space", "lies"),
    [
        ({}, True),
        ({"objective.alpha": {"uniform": [2, 3]}}, False),
        ({"objective.alpha": {"uniform": [0.5, 3]}}, True),
        ({"objective.teacher_temperature": {"uniform": [0.01, 0.2]}}, True),  # the run's own value lies there
        ({"objective.teacher_temperature": {"uniform": [0.1, 0.2]}}, False),
    ],
)
def test_a_setting_counts_in_a_changed_space_where_its_values_lie(space, lies):
    assert lies_in(tiny_sweep("a", space={**SPACE, **space}), PUBLISHED) is lies


def test_a_setting_counts_in_a_space_without_one_of_its_keys_only_with_the_runs_value():
    space = {key: SPACE[key] for key in ("objective.beta", "objective.student_temperature")}
    assert lies_in(tiny_sweep("a", space=space), PUBLISHED)  # the run's alpha is 1
    assert not lies_in(tiny_sweep("a", space=space, run__objective={"alpha": 3}), PUBLISHED)


def test_seeds_of_a_setting_share_its_run():
    config = tiny_sweep(Path("a"), replicas=2)
    runs = [run_of(config, PUBLISHED, "x", seed).model_dump() for seed in (0, 1)]
    assert [run.pop("seed") for run in runs] == [0, 1] and runs[0] == runs[1]
