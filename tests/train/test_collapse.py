"""Which series of metrics stop a run, and which must not."""

import pytest
from toy import TOY

from tips_ray.config import RunConfig, override
from tips_ray.train.collapse import CollapseError, CollapseJudge

HEALTHY = {
    **{f"health/cls_{name}/{metric}": value for name in ("web", "synthetic") for metric, value in
       (("cosine", 0.3), ("effective_rank", 20.0))},
    **{f"health/{head}/{metric}": value for head in ("distillation", "masked_image") for metric, value in
       (("prototype_usage", 0.5), ("target_entropy_share", 0.6))},
}  # fmt: skip
ONE_OF_24 = 1 / 24


def _steps_until_stopped(signs: dict[str, float], steps: int = 50, **values) -> int | None:
    """Steps, all logged, from the end of the warm-up (step 10) to the stop."""
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": 8}
    keys = {"schedule.total_steps": 100, "schedule.warmup": 0.1, "health.collapse_patience": 5}
    keys |= {key.replace("__", "."): value for key, value in values.items()}
    judge = CollapseJudge(override(RunConfig, {**TOY, **run}, keys))
    for step in range(1, 11 + steps):
        try:
            judge.judge(step, HEALTHY | signs)
        except CollapseError:
            return step - 10
    return None


@pytest.mark.parametrize(
    "signs",
    [
        {"health/cls_web/cosine": 0.99995},
        {"health/cls_synthetic/cosine": 1.0},
        {"health/cls_web/effective_rank": 1.05},
        {"health/distillation/prototype_usage": ONE_OF_24, "health/distillation/target_entropy_share": 0.0},
        {"health/masked_image/prototype_usage": ONE_OF_24, "health/masked_image/target_entropy_share": 0.3},
    ],
)
def test_each_sign_stops_a_run_once_it_has_lasted(signs):
    assert _steps_until_stopped(signs) == 5
    assert _steps_until_stopped(signs, health__collapse_patience=20) == 20


@pytest.mark.parametrize(
    "signs",
    [
        {},
        {"health/cls_web/cosine": 0.9994},
        {"health/cls_web/effective_rank": 1.3},
        {"health/masked_image/target_entropy_share": 1.0, "health/distillation/target_entropy_share": 1.0},
        {"health/masked_image/target_entropy_share": 1.0, "health/masked_image/prototype_usage": ONE_OF_24},
        {"health/distillation/target_entropy_share": 0.0, "health/distillation/prototype_usage": 2 * ONE_OF_24},
    ],
)
def test_uniform_targets_sharp_targets_and_alike_images_alone_stop_nothing(signs):
    assert _steps_until_stopped(signs) is None


def test_a_sign_that_comes_and_goes_begins_anew_and_skipped_steps_lack_all_metrics():
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": 8}
    judge = CollapseJudge(override(RunConfig, {**TOY, **run}, {"health.collapse_patience": 3}))
    for step in range(3, 60):
        judge.judge(step, {} if step % 3 == 0 else {"health/cls_web/cosine": 1.0})


def test_lines_without_effective_ranks_are_no_lines_for_that_sign():
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": 8}
    judge = CollapseJudge(override(RunConfig, {**TOY, **run}, {"health.collapse_patience": 3}))
    rank = "health/cls_web/effective_rank"
    for step in range(10, 30):
        judge.judge(step, HEALTHY | {rank: 1.05} if step % 10 == 0 else {k: v for k, v in HEALTHY.items() if k != rank})
    with pytest.raises(CollapseError, match="step 30: health/cls_web/effective_rank is 1.05"):
        judge.judge(30, HEALTHY | {rank: 1.05})


def test_a_cls_token_that_nothing_trains_may_be_alike_for_all_images():
    web, synthetic = ({f"health/cls_{name}/cosine": 1.0} for name in ("web", "synthetic"))
    web_alone = {"objective__web_weight": 1, "objective__synthetic_weight": 0}
    synthetic_alone = {"objective__web_weight": 0, "objective__synthetic_weight": 1}
    assert _steps_until_stopped(synthetic, **web_alone) is None and _steps_until_stopped(web, **web_alone) == 5
    assert _steps_until_stopped(web, **synthetic_alone) == 5  # distillation trains it
    assert _steps_until_stopped(web, **synthetic_alone, objective__alpha=0) is None


def test_a_run_may_be_told_to_go_on():
    assert _steps_until_stopped({"health/cls_web/cosine": 1.0}, health__stop_on_collapse=False) is None


def test_a_head_that_knows_less_than_the_mean_target_stops_a_run_that_asks_for_it():
    told = {"health/masked_image/information": -0.01}
    assert _steps_until_stopped(told) is None
    assert _steps_until_stopped(told, health__stop_without_information=True) == 5
    assert _steps_until_stopped({name: 0.01 for name in told}, health__stop_without_information=True) is None
    only = {"health__stop_without_information": True, "health__stop_on_collapse": False}
    assert (
        _steps_until_stopped(told, **only) == 5 and _steps_until_stopped({"health/cls_web/cosine": 1.0}, **only) is None
    )


def test_the_sentence_has_sign_value_limit_meaning_and_cure():
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}]}, "global_batch_images": 8}
    judge = CollapseJudge(override(RunConfig, {**TOY, **run}, {"health.collapse_patience": 1}))
    words = (
        r"^training has collapsed at step 7: health/cls_web/cosine is 0\.99995, above 0\.9999, for 1 logged steps in a "
        r"row \(health\.collapse_patience\), which means that all images have the same embedding; lower "
    )
    with pytest.raises(CollapseError, match=words):
        judge.judge(7, {"health/cls_web/cosine": 0.99995})
