"""Decisions at rungs, by hand."""

from collections.abc import Mapping

import pytest
from toy_sweep import tiny_sweep

from tips_ray.config.score import ScoreConfig
from tuning.sweeps.record import Setting, Trial
from tuning.sweeps.rungs import Grant, Rungs, front_numbers, rank_order
from tuning.sweeps.space import run_of

LOWER, HIGHER = (ScoreConfig(metric="a", better="lower"), ScoreConfig(metric="b", better="higher"))


def _rungs(**values) -> Rungs:
    config = tiny_sweep("a", **{"keep": 3, **values})
    return Rungs(config, run_of(config, {}))


def _setting(number: int, granted: int, scores: Mapping[int, float], violation: str = "") -> Setting:
    """One seed; scores by step."""
    trial = Trial({step: (score,) for step, score in scores.items()}, violation)
    return Setting(number, {}, "random", granted, violation, trials={0: trial})


def _at_first(*scores: float) -> list[Setting]:
    return [_setting(number, 4, {4: score}) for number, score in enumerate(scores)]


def _granted(rungs: Rungs, settings: list[Setting], is_last_call: bool = False) -> tuple[int, int | None] | None:
    grant = rungs.next_grant(settings, is_last_call)
    return grant and (grant.setting.number, grant.step)


@pytest.mark.parametrize(
    ("scores", "number"),
    [((3, 1), None), ((3, 1, 2), 1), ((3, 1, 2, 4, 5), 1), ((2, 2, 2), 0)],
)
def test_one_in_three_goes_on_once_three_were_compared(scores, number):
    found = _granted(_rungs(), _at_first(*scores))
    assert found == (None if number is None else (number, 8))


def test_a_setting_that_went_on_takes_its_place_of_the_quota_and_higher_rungs_come_first():
    settings = _at_first(3, 1, 2, 0.5, 5, 6)
    settings[1].granted = 8  # the best of the first three, before the fourth came
    rungs = _rungs()
    assert _granted(rungs, settings) == (3, 8)
    settings[3].granted = 8
    assert _granted(rungs, settings) is None
    for setting, score in ((settings[1], 0.4), (settings[3], 0.2), (settings[2], 0.3)):
        setting.granted, setting.trial(0).scores[8] = 8, (score,)
    assert _granted(rungs, settings) == (3, 12), "the second rung has three, of which one goes on"


def test_the_last_call_lets_the_best_go_on_where_too_few_were_compared():
    settings, rungs = _at_first(3, 1), _rungs()
    assert _granted(rungs, settings, is_last_call=True) == (1, 8)
    settings[1].granted = 8
    settings[1].trial(0).scores[8] = (1,)
    assert _granted(rungs, settings, is_last_call=True) == (1, 12)
    settings[1].granted = 12
    assert _granted(rungs, settings, is_last_call=True) is None


def test_a_setting_that_collapsed_counts_as_compared_and_as_the_worst():
    settings = [*_at_first(3, 1), _setting(2, 4, {}, "collapsed")]
    assert _granted(_rungs(), settings) == (1, 8)
    above = [*_at_first(3, 1), _setting(2, 8, {4: 0.5}, "collapsed")]
    assert _granted(_rungs(), above) is None, "its own score is the best of the first rung, and it took the quota"


def test_the_stopping_form_decides_at_once_and_never_again():
    rungs = _rungs(scheduler="asha")
    settings = _at_first(3)
    assert _granted(rungs, settings) == (0, 8), "the first passes always"
    settings = _at_first(3, 4)
    settings[0].granted = 8
    assert rungs.next_grant(settings, False) == Grant(settings[1], None, "is not among the best at step 4")
    better = _at_first(3, 1)
    better[0].granted = 8
    assert _granted(rungs, better) == (1, 8)


def test_without_a_scheduler_every_setting_has_all_steps():
    rungs = _rungs(scheduler="none")
    assert rungs.first_step() == 12 and rungs.next_grant([_setting(0, 12, {4: 1})], True) is None
    assert _granted(rungs, _at_first(1)) == (0, 12), "one that another scheduler has let pause"
    assert [rungs.next_step(_setting(0, 12, dict.fromkeys(done, 1.0)), 0) for done in ((), (4,), (4, 8, 12))] == [
        4,
        8,
        None,
    ]


def test_a_setting_is_scored_by_the_mean_over_all_its_seeds():
    rungs = _rungs(replicas=2, run__seed=3)
    setting = Setting(0, {}, "random", 4, trials={3: Trial({4: (1.0,)})})
    assert rungs.seeds == (3, 4) and not rungs.ranked([setting], 4)
    assert rungs.next_step(setting, 3) is None and rungs.next_step(setting, 4) == 4
    setting.trial(4).scores[4] = (2.0,)
    assert setting.score(4, rungs.seeds) == (1.5,) and rungs.ranked([setting], 4) == [setting]
    setting.trial(4).scores[4] = (None,)
    assert setting.score(4, rungs.seeds) is None, "a loss that is not finite"


def test_fronts_of_two_scores():
    """(1, 9) and (2, 10) beat no other in both; (3, 9) is beaten by both, (4, 1) by all."""
    scores = [(4, 1), (3, 9), (2, 10), (1, 9)]
    assert front_numbers([(a, -b) for a, b in scores]) == [2, 1, 0, 0]
    assert rank_order(scores, (LOWER, HIGHER)) == [3, 2, 1, 0]
    assert rank_order([(2,), (1,), (2,), (0,)], (LOWER,)) == [3, 1, 0, 2]
    assert rank_order([(2,), (1,)], (HIGHER,)) == [0, 1]
