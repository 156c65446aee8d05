"""What is said of losses, from metrics written by hand. 100 steps of 16 pairs and 64 prototypes, 10 of warm-up."""

from collections.abc import Sequence
from math import log
from typing import Any

import pytest
from toy import TOY

from tips_ray.config import RunConfig, override
from tips_ray.runs.curves import trend_of
from tips_ray.runs.loss_health import Finding, findings_of, loss_findings, trivial_values
from tips_ray.runs.mlflow_facts import health_tags

HEALTHY = {
    "loss/total": 5.0,
    "loss/contrastive_web": 1.0,
    "loss/contrastive_synthetic": 1.2,
    "loss/distillation": 3.0,
    "loss/masked_image": 3.0,
    **{f"health/{head}/{name}": value for head in ("distillation", "masked_image") for name, value in
       (("target_entropy", 2.0), ("target_entropy_share", 2.0 / log(64)), ("prototype_usage", 0.5))},
    **{f"health/cls_{name}/{metric}": value for name in ("web", "synthetic") for metric, value in
       (("cosine", 0.3), ("effective_rank", 20.0))},
    "health/temperature": 0.07,
    "grad_norm": 3.0,
    "guard/skipped": 0.0,
    "data/bad_fraction": 0.0,
    "data_wait_share": 0.02,
}  # fmt: skip


def _config(**values) -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": 16}
    keys = {"schedule.total_steps": 100, "schedule.warmup": 0.1, "head.num_prototypes": 64}
    return override(RunConfig, {**TOY, **run}, keys | {key.replace("__", "."): value for key, value in values.items()})


def _lines(last: int = 100, every: int = 2, **changes: Any) -> list[dict[str, Any]]:
    """Lines up to step `last`; a change is a value, or a function of the step. `__` stands for the slash."""
    changed = {key.replace("__", "/"): value for key, value in changes.items()}
    lines = [{"step": step, "time": "", **HEALTHY, **changed} for step in range(every, last + 1, every)]
    return [{name: value(line["step"]) if callable(value) else value for name, value in line.items()} for line in lines]


def _told(finding: Finding) -> tuple[str, str]:
    return finding.level, finding.about


def test_trivial_values_are_logarithms_of_pairs_and_prototypes():
    found = trivial_values(_config(objective__visible_weight=1.0, objective__synthetic_weight=0.0))
    assert {name: trivial.value for name, trivial in found.items()} == pytest.approx(
        {"loss/contrastive_web": log(16), "loss/distillation": log(64), "loss/masked_image": 2 * log(64)}
    )
    assert found["loss/masked_image"].words == "2 ln 64"
    assert set(trivial_values(_config(objective__alpha=0.0, objective__beta=0.0))) == {
        "loss/contrastive_web",
        "loss/contrastive_synthetic",
    }


def test_a_healthy_run_is_good_with_its_numbers():
    """The student has closed 4.16 - 3 of the 4.16 - 2 nats between uniform and the teacher's entropy: 54 %."""
    found = loss_findings(_config(), _lines())
    assert {finding.level for finding in found} == {"good"} and len(found) == 4
    assert found[2] == Finding(
        "good",
        "distillation",
        "3.00, between the teacher's entropy 2.00 and uniform ln 64 = 4.16: the student predicts 54% of what the "
        "teacher tells, as 28 steps before",
    )


def test_mlflow_has_what_is_ill_with_its_cure():
    (told,) = health_tags(_config(), _lines(loss__contrastive_web=2.76)).values()
    assert told.startswith("ill: contrastive_web: nothing is learned: 2.76") and "; try: lower schedule.peak_lr" in told
    assert health_tags(_config(), _lines()) == {"health": "good"}
    assert health_tags(_config(), _lines(last=8)) == {"health": "early"} and health_tags(_config(), []) == {}


@pytest.mark.parametrize(
    ("changes", "level", "about", "words"),
    [
        ({"loss__contrastive_web": 2.76}, "ill", "contrastive_web", "nothing is learned: 2.76, where guessing"),
        ({"loss__contrastive_web": 3.5}, "ill", "contrastive_web", "worse than guessing: 3.50"),
        ({"loss__contrastive_web": lambda step: 3.5 - step / 200}, "good", "contrastive_web", "falls from 3.13"),
        ({"loss__contrastive_web": lambda step: step / 50}, "watch", "contrastive_web", "it gets worse: 1.96"),
        ({"loss__distillation": 4.3}, "ill", "distillation", "lately 4.30, above ln 64 = 4.16"),
        ({"loss__distillation": 4.15}, "ill", "distillation", "hardly anything is learned: 4.15"),
        ({"loss__distillation": lambda step: 0.5 + step / 30}, "watch", "distillation", "behind its teacher: 3.77"),
        ({"loss__masked_image": 0.0}, "ill", "masked_image", "no patch is masked"),
        ({"health__masked_image__target_entropy_share": 0.99}, "ill", "masked_image targets", "uniform"),
        ({"health__masked_image__target_entropy_share": 0.96}, "watch", "masked_image targets", "nearly uniform"),
        ({"health__distillation__target_entropy_share": 0.001}, "ill", "distillation targets", "one-hot"),
        (
            {"health__distillation__information": 0.1, "health__distillation__mutual_information": 0.1},
            "ill", "distillation targets",
            "hardly anything of single images: the student predicts 0.10 nats of them, and they differ by 0.10 nats",
        ),
        (
            {"health__masked_image__information": -0.5, "health__masked_image__mutual_information": 2.0},
            "ill", "masked_image targets", "the student predicts 0.00 nats of them, and they differ by 2.00 nats",
        ),
        (
            {"health__distillation__prototype_usage": 1.8 / 64}, "watch", "distillation targets",
            "2 prototypes win all rows, of 64 that could",
        ),
        (
            {"health__masked_image__target_entropy": lambda step: 1.5 + abs(step - 80) / 20}, "watch",
            "masked_image targets", "their entropy swings by 1.0 nats",
        ),
        ({"health__cls_web__cosine": 0.99}, "ill", "cls_web", "mean cosine 0.990, effective rank 20.0"),
        ({"health__cls_synthetic__effective_rank": 1.5}, "ill", "cls_synthetic", "effective rank 1.5"),
        ({"health__temperature": 2.0}, "ill", "temperature", "no contrastive loss can fall below 2.28"),
        ({"health__temperature": 0.005}, "watch", "temperature", "below 0.01, where CLIP stops it"),
        ({"grad_norm": lambda step: 1.2**step}, "watch", "grad_norm", "grows from"),
        ({"guard__skipped": 1.0}, "watch", "guard", "1 of 100 steps were not finite"),
        ({"guard__skipped": 5.0}, "ill", "guard", "5 of 100 steps"),
        ({"data__bad_fraction": 0.008}, "watch", "data", "0.8% of the rows are bad; above 1.0% the run stops"),
        ({"data_wait_share": 0.5}, "watch", "data", "training waits for data 50% of the time"),
    ],
)  # fmt: skip
def test_each_is_told_by_its_level_with_numbers_and_all_else_stays_good(changes, level, about, words):
    found = loss_findings(_config(), _lines(**changes))
    told = next(finding for finding in found if finding.about == about)
    assert told.level == level and words in told.seen, told
    assert bool(told.cure) == (level != "good") and bool(told.short) >= (level == "ill")
    others = {finding.level for finding in found if finding.about.split()[0] != about.split()[0]}
    assert others == (set() if "collapsed" in told.short else {"good"})  # a constant is easy to predict


def test_collapsed_targets_hide_the_loss_whose_small_value_would_look_good():
    changes = {"target_entropy": 0.01, "target_entropy_share": 0.002, "prototype_usage": 1 / 64}
    collapsed: dict[str, Any] = {f"health__distillation__{name}": value for name, value in changes.items()}
    found = loss_findings(_config(), _lines(loss__distillation=0.01, **collapsed))
    assert _told(found[0]) == ("ill", "distillation targets") and "one of 64 prototypes" in found[0].seen
    assert "distillation" not in [finding.about for finding in found]


DEMO_WINNERS = (8, 5, 2, 3, 4, 2, 2, 2, 1, 3, 1, 3, 3, 1, 2, 4, 8, 7, 8, 6, 12, 11, 9, 7, 8, 7, 6, 5, 4, 6, 7, 10, 15)
DEMO_ENTROPY = (
    5.5, 4.9, 4.0, 3.4, 2.5, 1.8, 2.0, 2.2, 3.2, 3.9, 3.8, 4.0, 3.7, 3.5, 3.9, 4.6, 5.0, 4.9, 4.8, 4.8, 4.7, 4.4, 4.0,
    3.7, 3.7, 3.6, 3.4, 3.4, 3.5, 3.9, 4.3, 4.9, 5.3,
)  # fmt: skip
"""Logged steps of the demo as it was in November 2026, from step 20 to 180: 64 images a step, 512 prototypes."""


def _demo(winners: Sequence[float], entropy: Sequence[float]) -> list[Finding]:
    values = {"global_batch_images": 64, "head__num_prototypes": 512, "schedule__total_steps": 180}
    lines = [{"step": 20 + 5 * place, "loss/distillation": nats + 0.2, "health/distillation/target_entropy": nats,
              "health/distillation/target_entropy_share": nats / log(512),
              "health/distillation/prototype_usage": won / 512}
             for place, (won, nats) in enumerate(zip(winners, entropy, strict=True))]  # fmt: skip
    return loss_findings(_config(log_every_steps=5, **values), lines)


def test_targets_that_swing_between_few_prototypes_are_ill_although_the_student_follows_them():
    found = _demo(DEMO_WINNERS, DEMO_ENTROPY)[0]
    assert _told(found) == ("ill", "distillation targets") and "center_start=bias_corrected" in found.cure
    assert "7 prototypes win all rows, of 320 that could" in found.seen and "swings by 1.6 nats" in found.seen
    assert found.short == "distillation targets swing between few prototypes"


def test_targets_of_more_prototypes_and_those_that_only_grow_sharper_are_good():
    found = _demo([3 * won + 10 for won in DEMO_WINNERS], sorted(DEMO_ENTROPY, reverse=True))
    assert {finding.level for finding in found} == {"good"}


def test_five_lines_in_a_row_must_carry_nothing():
    recovered: dict[str, Any] = {"health__distillation__information": lambda step: 0.1 if step < 96 else 0.3}
    assert {finding.level for finding in loss_findings(_config(), _lines(**recovered))} == {"good"}
    fewer: dict[str, Any] = {"health__distillation__information": lambda step: None if step < 94 else 0.1}
    assert {finding.level for finding in loss_findings(_config(), _lines(**fewer))} == {"good"}


def test_a_student_too_warm_for_its_teacher_is_named_by_the_lowest_loss_that_it_can_reach():
    """Scores are cosines, so at temperature 5 no loss lies below ln(1 + 63 exp(-2/5)) = 3.77."""
    found = loss_findings(_config(objective__student_temperature=5.0), _lines(loss__distillation=3.9))
    assert found[0].about == "distillation" and "no loss can fall below 3.77" in found[0].seen


def test_what_is_at_chance_soon_after_the_warm_up_is_only_watched():
    found = loss_findings(_config(), _lines(last=40, loss__contrastive_web=2.76))
    assert _told(found[0]) == ("watch", "contrastive_web")


@pytest.mark.parametrize(("last", "every"), [(38, 2), (100, 20), (8, 2)])
def test_few_steps_or_lines_after_the_warm_up_are_too_early(last, every):
    (found,) = loss_findings(_config(), _lines(last, every, loss__distillation=9.0))
    assert _told(found) == ("early", "losses") and f"too early to tell at step {last}" in found.seen


def test_without_lines_and_with_an_unknown_config_nothing_is_said():
    assert loss_findings(_config(), []) == [] and findings_of({"name": "older"}, _lines()) == []


def test_one_wild_value_and_missing_ones_change_no_finding():
    nan = float("nan")
    changes: dict[str, Any] = {
        "loss__distillation": lambda step: 900.0 if step == 98 else nan if step % 10 == 0 else 3.0
    }
    assert {finding.level for finding in loss_findings(_config(), _lines(**changes))} == {"good"}


def test_a_direction_needs_order_and_size():
    noise = [0.3, -0.2, 0.1, -0.3, 0.2, 0.0, -0.1, 0.25, -0.25, 0.15]
    flat = [(step, 1 + value) for step, value in enumerate(noise * 3)]
    assert trend_of(flat).direction == "flat"
    falling = [(step, value - step / 20) for step, value in flat]
    assert trend_of(falling).direction == "falling" and trend_of(falling, least_change=3.0).direction == "flat"
    assert trend_of([(step, -value) for step, value in falling]).direction == "rising"
    assert trend_of(falling[:5]).direction == "flat", "too few"
    assert trend_of([(float(step), float(step)) for step in range(10, 20)]) == ("rising", 11.0, 18.0, 9)


def test_a_level_loss_whose_images_find_no_more_than_guessing_is_watched():
    level: dict[str, Any] = {"loss__contrastive_web": log(16) * 0.9, "health__contrastive_web__image_to_text": 1.1 / 16}
    found = loss_findings(_config(), _lines(**level))
    told = next(finding for finding in found if finding.about == "contrastive_web")
    assert told.level == "watch" and told.seen.startswith("hardly more than guessing")
