import pytest

from tips_ray.config import ObjectiveConfig, ScheduleConfig
from tips_ray.train.schedules import learning_rate, prototypes_frozen, teacher_temperature


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
    values = [teacher_temperature(step, 100, config) for step in (0, 10, 30, 99)]
    assert values == pytest.approx([0.04, 0.05, 0.07, 0.07])
    assert teacher_temperature(0, 100, ObjectiveConfig(teacher_temperature_warmup=0)) == 0.07


def test_prototypes_rest_for_one_percent_of_the_steps():
    config = ObjectiveConfig()
    assert [prototypes_frozen(step, 200, config) for step in range(4)] == [True, True, False, False]
