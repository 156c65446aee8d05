"""Whether a small sweep may choose for a large run: sizes, settings, correlation and movement by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from toy_sweep import SPACE, bowl, queue, run_all, tiny_sweep

from tips_ray.config.sweep import SweepConfig
from tuning.sweeps.record import Record
from tuning.sweeps.space import run_of
from tuning.sweeps.summary import Summary
from tuning.sweeps.transfer import (
    Transfer,
    add_settings,
    chosen,
    compared,
    correlation,
    factors_of,
    larger,
    movements,
    told,
)

FACTORS = {"width": 2, "steps": 4}


def _ran(folder: Path, **values) -> SweepConfig:
    config = tiny_sweep(folder, **values)
    run_all(queue(config, f"{folder}/tiny"))
    return config


def _transfer(small, large, alphas=None) -> Transfer:
    shares = np.array([[alpha] for alpha in alphas or np.linspace(0, 1, len(small))])
    return Transfer(("objective.alpha",), shares, np.array(small, float), np.array(large, float))


@pytest.mark.parametrize("words", [["wide=2x"], ["width=1.5x"], ["width=0x"], ["width"], ["width=1x"]])
def test_factors_are_whole_numbers_of_known_names(words):
    with pytest.raises(ValueError, match="--check-transfer"):
        factors_of(words)
    assert factors_of(["width=2x", "steps=4"]) == FACTORS


def test_a_larger_run_has_wider_networks_longer_schedules_and_the_same_rest():
    changes = [{"from_step": 3, "alpha": 2.0}]
    config = tiny_sweep("a", run__schedule__changes=changes)
    large = larger(config, FACTORS, 5, 4)
    before, after = run_of(config, {}), run_of(large, {})
    assert (after.image.width, after.image.num_heads, after.image.ffn_hidden) == (32, 4, 64)
    assert (after.text.width, after.text.num_heads, after.text.ffn_hidden) == (32, 4, 64)
    assert (after.head.hidden, after.head.bottleneck, after.head.num_prototypes) == (64, 32, 24)
    assert after.schedule.total_steps == 48 and after.schedule.changes[0].from_step == 12
    assert (large.name, large.rungs, large.until, large.settings) == ("tiny-width2x-steps4x", (16, 32), 16, 5)
    assert after.model_dump(exclude={"image", "text", "head", "schedule"}) == before.model_dump(
        exclude={"image", "text", "head", "schedule"}
    )


def test_a_space_over_a_scaled_size_is_refused():
    config = tiny_sweep("a", space={"head.hidden": {"choice": [32, 64]}})
    with pytest.raises(ValueError, match="space.head.hidden: --check-transfer scales this key"):
        larger(config, {"width": 2}, 5, 4)
    assert larger(config, {"steps": 2}, 5, 4).name == "tiny-steps2x"


def test_settings_of_all_ranks_are_repeated_at_the_same_share_of_the_training(tmp_path):
    """All nine have scores at the first rung and few at the second, so that the first is the one compared."""
    config = _ran(tmp_path, settings=9, keep=5)
    summary = Summary(config, Record(f"{tmp_path}/tiny"))
    settings, step = chosen(summary, 5)
    ranked = summary.rungs.ranked(summary.settings, 4)
    assert step == 4 and settings == [ranked[place] for place in (0, 2, 4, 6, 8)]
    large = larger(config, FACTORS, len(settings), step)
    for _ in range(2):  # again after a kill: none is added twice
        add_settings(large, settings, step * 4)
    sweep = queue(large, f"{tmp_path}/{large.name}")
    ended = run_all(sweep, lambda values, seed, step: -bowl(values, seed, step))
    assert ended == [(number, 0, 16) for number in range(5)], "up to the rung, and no setting more"
    found = compared(config, large, FACTORS, step)
    assert len(found.small_N) == 5 and correlation(found)[0] == pytest.approx(-1)
    assert np.isnan(found.shares_NK[:, 2]).all(), "a choice has no place in a range"
    assert found.shares_NK[0, 0] == pytest.approx(math.log10(settings[0].values["objective.alpha"] / 0.1) / 2)


def test_too_few_scores_are_refused(tmp_path):
    config = _ran(tmp_path, settings=4)
    with pytest.raises(ValueError, match="tiny: a check needs 5 settings with scores at one rung, and 4 have them"):
        chosen(Summary(config, Record(f"{tmp_path}/tiny")), 8)


def test_the_interval_of_the_correlation():
    """r = .9 by one swap of neighbours among five; atanh(.9) = 1.472, 1.96 * sqrt(1.06 / 2) = 1.427."""
    r, low, high = correlation(_transfer([1, 2, 3, 4, 5], [1, 2, 3, 5, 4]))
    assert r == pytest.approx(0.9) and low == pytest.approx(math.tanh(1.4722 - 1.4269), abs=1e-3)
    assert high == pytest.approx(math.tanh(1.4722 + 1.4269), abs=1e-3)


def test_an_optimum_that_moves_from_one_end_to_the_other_is_seen():
    alphas = [place / 19 for place in range(20)]
    still = movements(_transfer(alphas, alphas, alphas))["objective.alpha"]
    assert still == (0, 0, 0)
    moved, low, high = movements(_transfer(alphas, [1 - alpha for alpha in alphas], alphas))["objective.alpha"]
    assert moved == 1 and 0.7 < low < high == 1


@pytest.mark.parametrize(
    ("small", "large", "sentence"),
    [
        (range(20), range(20), "the small sweep may choose for the large run"),
        (range(20), range(20, 0, -1), "the small sweep must not choose for the large run: the order of the settings"),
        (range(5), [0, 1, 2, 4, 3], "cannot be told from 5 settings"),
        (range(4), range(4), "only 4 settings have scores at both sizes, 5 are needed"),
    ],
)
def test_one_sentence_says_whether_the_small_sweep_may_choose(small, large, sentence):
    lines = list(told(_transfer(list(small), list(large)), larger(tiny_sweep("a", space=SPACE), FACTORS, 5, 4)))
    assert sentence in lines[-1]
