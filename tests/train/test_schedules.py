import pytest
from pydantic import ValidationError
from toy import toy_config

from tips_ray.config import ObjectiveConfig, ScheduleConfig
from tips_ray.train.schedules import (
    center_momentum,
    config_at,
    ema_momentum,
    learning_rate,
    prototype_temperatures,
    prototypes_frozen,
)


def test_learning_rate_by_hand():
    """104 steps, 4 of warm-up: 1/4, 2/4, 3/4, 4/4 of the peak, then a half cosine over steps 4 to 103."""
    config = ScheduleConfig(total_steps=104, peak_lr=2.0, warmup=4 / 104, final_lr_ratio=0.1)
    assert [learning_rate(step, config) for step in range(5)] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert learning_rate(4 + 33, config) == pytest.approx(2 * (0.1 + 0.9 * 0.75))  # a third: (1 + cos 60 deg) / 2 = 3/4
    assert learning_rate(103, config) == pytest.approx(0.2)
    assert learning_rate(500, config) == pytest.approx(0.2)


def test_no_warmup_starts_at_the_peak():
    assert learning_rate(0, ScheduleConfig(total_steps=10, peak_lr=2.0, warmup=0)) == 2.0


def test_teacher_temperature_by_hand():
    config = ObjectiveConfig()  # 0.04 -> 0.07 over 30 of 100 steps
    found = [prototype_temperatures(step, 100, config) for step in (0, 10, 30, 99)]
    assert [pair["distillation"].teacher for pair in found] == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert all(pair["masked_image"] == pair["distillation"] and pair["masked_image"].student == 0.1 for pair in found)
    no_warmup = prototype_temperatures(0, 100, ObjectiveConfig(teacher_temperature_warmup=0))
    assert no_warmup["distillation"] == (0.1, 0.07)


def test_the_masked_loss_has_temperatures_of_its_own_where_they_are_given():
    """0.04 -> 0.1 and 0.02 -> 0.05 over 30 of 100 steps: a third of the way is 0.06 and 0.03."""
    config = ObjectiveConfig(masked_student_temperature=0.2, masked_teacher_temperature=0.1)
    found = prototype_temperatures(10, 100, config)
    assert found["distillation"] == pytest.approx((0.1, 0.05)) and found["masked_image"] == pytest.approx((0.2, 0.06))
    config = ObjectiveConfig(masked_teacher_temperature_start=0.02, masked_teacher_temperature=0.05)
    assert prototype_temperatures(10, 100, config)["masked_image"] == pytest.approx((0.1, 0.03))


def test_a_ramp_runs_to_the_temperature_that_holds_now():
    """The change at step 10 moves the end from 0.07 to 0.1; a third of the way to it is 0.06."""
    changes = [{"from_step": 10, "teacher_temperature": 0.1, "masked_student_temperature": 0.3}]
    config = toy_config(schedule__changes=changes)
    before, after = (prototype_temperatures(step, 100, config_at(step, config).objective) for step in (9, 10))
    assert before["distillation"] == pytest.approx((0.1, 0.049)) and before["masked_image"] == before["distillation"]
    assert after["distillation"] == pytest.approx((0.1, 0.06)) and after["masked_image"] == pytest.approx((0.3, 0.06))


def test_a_centre_that_starts_at_zero_keeps_the_same_share_in_every_move():
    assert [center_momentum(moves, ObjectiveConfig()) for moves in (0, 1, 500)] == [0.9, 0.9, 0.9]


def test_a_bias_corrected_centre_is_the_mean_of_its_batches_with_weights_of_powers_of_the_momentum():
    """Batches with means 8, 0, 4 and momentum 1/2: 8, then (4 + 0) / (3/2), then (2 + 0 + 4) / (7/4)."""
    config, center, found = ObjectiveConfig(center_momentum=0.5, center_start="bias_corrected"), 0.0, []
    for moves, mean in enumerate((8.0, 0.0, 4.0)):
        momentum = center_momentum(moves, config)
        found.append(center := momentum * center + (1 - momentum) * mean)
    assert found == pytest.approx([8, 8 / 3, 24 / 7])
    assert center_momentum(400, config) == pytest.approx(0.5)
    ends = [ObjectiveConfig(center_momentum=momentum, center_start="bias_corrected") for momentum in (0.0, 1.0)]
    assert [center_momentum(3, config) for config in ends] == pytest.approx([0, 3 / 4])  # the newest alone; all alike


def test_prototypes_rest_for_one_percent_of_the_steps():
    config = ObjectiveConfig()
    assert [prototypes_frozen(step, 200, config) for step in range(4)] == [True, True, False, False]


def test_constant_rate_with_a_linear_cooldown_by_hand():
    """20 steps, 2 of warm-up, the last 4 fall by a quarter of 2.0 - 0.4 each; the last update has the final rate."""
    config = ScheduleConfig(total_steps=20, peak_lr=2.0, warmup=0.1, shape="constant", cooldown=0.2, final_lr_ratio=0.2)
    rates = [learning_rate(step, config) for step in (0, 1, 2, 15, 16, 17, 18, 19, 30)]
    assert rates == pytest.approx([1.0, 2.0, 2.0, 2.0, 1.6, 1.2, 0.8, 0.4, 0.4])


def test_warmup_and_cooldown_cannot_overlap():
    with pytest.raises(ValidationError, match=r"warmup \(0.3\) and cooldown \(0.8\)"):
        ScheduleConfig(shape="constant", warmup=0.3, cooldown=0.8)
    ScheduleConfig(shape="constant", warmup=0.2, cooldown=0.8)


def test_momentum_of_the_teacher_by_hand():
    """101 steps: the start at step 0, halfway at 50, a quarter of the way at a third (1 + cos 60 deg = 3/2)."""
    config = ObjectiveConfig(ema_momentum=0.9, ema_momentum_final=1.0)
    assert [ema_momentum(step, 101, config) for step in (0, 50, 100, 200)] == pytest.approx([0.9, 0.95, 1.0, 1.0])
    assert ema_momentum(30, 91, config) == pytest.approx(0.925)
    assert ema_momentum(30, 91, ObjectiveConfig(ema_momentum=0.9)) == 0.9


def test_changes_hold_from_their_step_on_and_later_ones_go_before():
    changes = [
        {"from_step": 3, "peak_lr": 0.5, "beta": 1.0},
        {"from_step": 6, "beta": 0.5, "weight_decay": 0.0, "max_grad_norm": 2.0, "ema_momentum": 0.9},
    ]
    config = toy_config(schedule__changes=changes)
    assert config_at(2, config) == config
    third, last = config_at(3, config), config_at(6, config)
    assert (third.schedule.peak_lr, third.objective.beta, third.objective.alpha) == (0.5, 1.0, 1.0)
    assert third.optimizer == config.optimizer
    assert (last.schedule.peak_lr, last.objective.beta, last.objective.ema_momentum) == (0.5, 0.5, 0.9)
    assert (last.optimizer.weight_decay, last.optimizer.max_grad_norm) == (0.0, 2.0)
    assert learning_rate(3, third.schedule) == pytest.approx(500 * learning_rate(3, config.schedule))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"schedule__changes": [{"from_step": 3}, {"from_step": 3}]}, r"from_step must rise.*\[3, 3\]"),
        ({"schedule__changes": [{"from_step": 3, "beta": 1}], "objective__beta": 0}, r"objective.beta \(0\)"),
        ({"schedule__changes": [{"from_step": 3, "warmup": 0.1}]}, "warmup"),
    ],
)
def test_a_change_that_cannot_be_made_is_refused(values, words):
    with pytest.raises(ValueError, match=words):
        toy_config(**values)
