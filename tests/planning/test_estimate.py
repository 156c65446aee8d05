"""Plans by hand arithmetic, and one sentence for each mistake."""

from dataclasses import replace

import pytest
from planning_toy import toy_run

from tips_ray.planning.content import Given, Plan
from tips_ray.planning.estimate import plan, require_known
from tips_ray.planning.flops import ImageFlops
from tips_ray.planning.machines import GIB, count_of, machine, published_use
from tips_ray.planning.step_trace import StepTrace

TRACE = StepTrace({"activations": 30 * GIB, "student": 10 * GIB}, "backward", ())
FLOPS = ImageFlops(total=4e12, student=1e12, teacher=0.5e12, embed=0.5e12)
GIVEN = Given(images=1000, machine=machine("h100:4"), mfu=0.4)
CAPTIONER = {"model": "some", "prompts": ["a", "b"]}


def _planned(given: Given = GIVEN, **values) -> Plan:
    """100 steps of 16 images on four GPUs, one pass of four images each."""
    return plan(toy_run(**{"micro_batch_images": 4, **values}), given, TRACE, FLOPS)


def test_time_is_operations_over_the_rate():
    found = _planned()
    seconds = 4 * 4e12 / (0.4 * 989e12)
    assert found.step.compute_seconds == found.step.seconds == pytest.approx(seconds)
    assert found.rates == {"training": pytest.approx(16 / seconds)}
    assert found.wall_seconds == pytest.approx(100 * seconds) and found.epochs == 1.6


def test_a_second_pass_and_recomputation_cost_what_mfu_does_not_count():
    rate = 0.4 * 989e12
    assert _planned(micro_batch_images=2).step.compute_seconds == pytest.approx(4 * 4.5e12 / rate)
    assert _planned(resources__recompute="full").step.compute_seconds == pytest.approx(4 * 5e12 / rate)


def _planned_with(**changes) -> Plan:
    return _planned(replace(GIVEN, **changes))


def test_entered_rates_count_before_public_ones():
    assert _planned_with(images_per_second_per_gpu=10.0).rates["training"] == pytest.approx(40)
    found = _planned(replace(GIVEN, mfu=None), resources__dtype="bf16")
    assert "18.5% of DINOv3" in found.step.rate_source
    assert found.rates["training"] == pytest.approx(4 * 0.185 * 989e12 / 4e12)


def test_memory_is_compared_with_nine_tenths_of_the_gpu():
    assert _planned().memory.fits and _planned().memory.limit_bytes == pytest.approx(0.9 * 79 * GIB)
    small = _planned_with(machine=machine("a100-40:4"))
    assert not small.memory.fits and small.weakest == "memory"


def test_captions_hold_up_the_first_epoch_alone():
    live = {"captions": {"source": "live", "captioner": CAPTIONER}, "resources__captioners": 2}
    found = _planned(replace(GIVEN, images_per_second_per_gpu=10.0, captions_per_second=5.0), **live)
    assert found.rates == pytest.approx({"training": 40, "captioning": 5})  # two prompts, two captioners
    assert found.wall_seconds == pytest.approx(1000 / 5 + 600 / 40)
    assert found.weakest == "captioning" and "resources.captioners=16" in found.advice
    assert found.needed["captioners"] == 16
    assert found.caption_hours == pytest.approx(2000 / 20 / 3600)
    assert found.storage.caption_bytes == 2000 * 100


def test_views_may_be_the_weakest_part():
    found = _planned_with(images_per_second_per_gpu=1000.0, cores_per_node=6, views_per_core=100.0)
    assert found.rates["views"] == 200 and found.weakest == "views"  # four workers have a core each


def test_there_is_no_cost_without_a_price():
    assert _planned().cost is None
    assert _planned_with(price_per_gpu_hour=2.0).cost == pytest.approx(2 * 4 * _planned().wall_seconds / 3600)


def test_lost_nodes_cost_half_an_interval_and_a_restart():
    # one image/s: a step takes 16 s, a checkpoint is due every 10 steps
    slow = dict(images_per_second_per_gpu=0.25, losses_per_node_hour=0.9)
    found = _planned(replace(GIVEN, **slow), checkpoint_every_steps=10)
    assert found.lost_share == pytest.approx(0.9 / 3600 * (80 + 180))
    assert found.wall_seconds == pytest.approx(1600 / (1 - found.lost_share))


def test_earlier_runs_correct_rate_memory_and_time():
    ratios = {"images_per_second": 0.5, "memory_bytes": 1.1, "wall_seconds": 3.0}
    found, before = _planned_with(ratios=ratios), _planned()
    assert found.rates["training"] == pytest.approx(0.5 * before.rates["training"])
    assert found.memory.peak_bytes == pytest.approx(1.1 * 40 * GIB)
    assert found.wall_seconds == pytest.approx(3 * before.wall_seconds)
    assert found.raw == before.raw


@pytest.mark.parametrize(
    ("given", "values", "sentence"),
    [
        (replace(GIVEN, images=15), {}, r"images \(15\) are fewer than one step takes"),
        (replace(GIVEN, mfu=None), {}, r"resources.dtype \(fp32\)"),
        (
            replace(GIVEN, mfu=None, machine=machine("l4:4")),
            {"resources__dtype": "bf16"},
            "no public run tells its MFU",
        ),
    ],
)
def test_what_is_not_known_is_said_before_the_trace(given, values, sentence):
    with pytest.raises(ValueError, match=sentence):
        require_known(toy_run(**values), given)


def test_a_spot_market_that_takes_all_time_is_refused():
    with pytest.raises(ValueError, match="lose all of its time"):
        _planned_with(losses_per_node_hour=1000.0)


def test_counts_and_machines_are_read_as_written():
    counts = {"116M": 116_000_000, "1.2B": 1_200_000_000, "500k": 500_000, "1,000": 1000, "7": 7, "3m": 3_000_000}
    assert {text: count_of(text) for text in counts} == counts
    assert (machine("H100:64").kind, machine("h100:64").nodes, machine("a100:4").per_node) == ("h100", 8, 4)
    giant = published_use("h200", 1536)
    assert giant and giant.run.startswith("NeMo") and published_use("l4", 384) is None


@pytest.mark.parametrize("text", ["116X", "0", "", "-3", "M"])
def test_a_count_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match="such as 116M"):
        count_of(text)


@pytest.mark.parametrize(
    ("text", "sentence"), [("h100", "a kind and a number"), ("b9:2", "known are a100"), ("h100:0", "number")]
)
def test_a_machine_that_is_none_is_refused(text, sentence):
    with pytest.raises(ValueError, match=sentence):
        machine(text)
