"""The planned memory is that of the real step; messages are those of FSDP."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import fields
from functools import cache, partial
from math import ceil, prod
from typing import Any

import pytest
import torch
import torch.distributed as dist
from planning_toy import toy_run, toy_trace

from benchmarks.measure import peak_bytes
from benchmarks.plan_memory import CPU, _steps
from tips_ray.data.collate import batch_from
from tips_ray.planning.live_storages import KEPT, LiveStorages
from tips_ray.planning.micro_batch import largest_micro_batch, settled
from tips_ray.planning.step_trace import StepTrace, traced, traced_in_run
from tips_ray.train.micro_batch import noise
from tips_ray.train.optim import fill_averages
from tips_ray.train.state import new_state
from tips_ray.train.step import train_step


def _shard_bytes(network: torch.nn.Module, workers: int) -> int:
    """Bytes of rank 0: FSDP cuts the rows into equal parts, of which the last ones may be short; one row by width."""
    shapes = [weight.shape for weight in network.parameters()]
    cut = [shape[::-1] if len(shape) > 1 and shape[0] == 1 else shape for shape in shapes]
    return sum(4 * ceil(shape[0] / workers) * prod(shape[1:]) for shape in cut)


def test_weights_teacher_and_averages_are_those_of_a_worker():
    state, parts = new_state(toy_run(), device="meta"), toy_trace().parts
    assert parts["student"] == _shard_bytes(state.student, 4)
    centers = 2 * 4 * 1000
    assert parts["teacher"] == _shard_bytes(state.teacher, 4) + centers
    counters = 4 * len(list(state.student.parameters()))
    assert parts["optimizer"] == 2 * parts["student"] + counters


def test_batches_of_all_passes_are_held():
    image, crops, patches = 4 * 3 * 28**2, 4 * 3 * 2 * 14**2, 4
    row = image + crops + patches + 3 * 8 + 2 * 8 * 8 + 1 + 8  # three of four patches masked, two captions
    assert toy_trace().parts["batches"] == 4 * row
    assert _longer_trace().parts["batches"] == 8 * row
    assert traced_in_run(toy_run()).peak_bytes == toy_trace().peak_bytes + 2 * 4 * row  # of the steps before and after


@cache
def _longer_trace() -> StepTrace:
    """The same with four passes."""
    return traced(toy_run(global_batch_images=32))


def _sent(trace: StepTrace) -> Mapping[tuple[str, str], float]:
    found: defaultdict[tuple[str, str], float] = defaultdict(float)
    for message in trace.messages:
        found[message.kind, message.phase] += message.bytes * message.times
    return found


def test_messages_carry_the_weights_once_per_pass():
    sent, state = _sent(toy_trace()), new_state(toy_run(), device="meta")
    student, teacher = (4 * _shard_bytes(network, 4) for network in (state.student, state.teacher))
    assert sent["reduce-scatter", "backward"] == 2 * student
    assert sent["all-gather", "teacher"] == 2 * teacher
    embeddings = 4 * 4 * 4 * 4 * 32  # fp32, four of each image, four images on each of four workers
    validity = sent["all-gather", "losses"] - embeddings
    assert 0 <= validity <= 2 * 4 * 4 * 8


def _gathered_bytes_of_student(trace: StepTrace) -> float:
    return sum(_sent(trace)["all-gather", phase] for phase in ("embed", "student", "backward"))


def test_weights_that_stay_gathered_are_sent_once_a_step():
    student = 4 * _shard_bytes(new_state(toy_run(), device="meta").student, 4)
    assert _gathered_bytes_of_student(toy_trace()) == student
    assert _gathered_bytes_of_student(_longer_trace()) == student
    freed = [
        {"resources__reshard_after_forward": True},
        {"resources__reshard_after_forward": True, "global_batch_images": 32},
    ]
    two, four = (_gathered_bytes_of_student(traced(toy_run(**keys))) for keys in freed)
    assert four == 2 * two and two > 2 * student


def test_further_passes_send_as_much_as_the_second_one():
    two, four = _sent(toy_trace()), _sent(_longer_trace())
    assert four["reduce-scatter", "backward"] == 2 * two["reduce-scatter", "backward"]
    once = _sent(traced(toy_run(global_batch_images=32, resources__accumulate_unsharded=True)))
    assert once["reduce-scatter", "backward"] == two["reduce-scatter", "backward"] / 2


@pytest.mark.heavy
def test_the_plan_is_within_a_tenth_of_what_the_real_step_allocates():
    kept = [_kept_activations(recompute) for recompute in ("none", "selective", "full")]
    assert kept[0] > kept[1] > kept[2]
    assert not dist.is_initialized()


def _kept_activations(recompute: str) -> int:
    """Compare plan and step of one worker by itself; bytes of activations by the plan."""
    config = toy_run(
        resources__workers=1,
        micro_batch_images=16,
        image__width=64,
        image__depth=2,
        text__width=64,
        resources__recompute=recompute,
    )
    state, step = _steps(config, False, 1)
    batch_bytes = 16 * (4 * 3 * (28**2 + 2 * 14**2) + 4 + 3 * 8 + 2 * 8 * 8 + 1 + 8)
    planned = traced(config, is_sharded=False)
    assert planned.peak_bytes == pytest.approx(peak_bytes(state, step, CPU) + batch_bytes, rel=0.1)
    return planned.parts["activations"]


def test_first_passes_that_keep_their_graph_are_all_held_at_the_peak():
    """By itself on one worker: two passes against four of as many images, whose graphs are as large."""
    two, four = (_kept(images) for images in (4, 8))
    grown, batches = (four.parts[name] - two.parts[name] for name in (KEPT, "batches"))
    assert four.peak_bytes - two.peak_bytes == grown + batches
    # A graph of two images: a block of 6 tokens of width 32 keeps more than 12 times its input, in fp32.
    assert grown / 2 > 2 * 12 * 6 * 32 * 4
    plain = traced(toy_run(resources__workers=1, global_batch_images=8), is_sharded=False)
    assert plain.parts.get(KEPT, 0) < 0.05 * grown


def _kept(images: int) -> StepTrace:
    values: dict[str, Any] = {"resources__keep_embedding_graph": True, "resources__workers": 1}
    return traced(toy_run(**values, global_batch_images=images), is_sharded=False)


@pytest.mark.heavy
def test_the_planned_memory_of_kept_graphs_is_within_a_tenth_of_what_the_real_step_allocates():
    config = toy_run(
        resources__workers=1,
        resources__keep_embedding_graph=True,
        global_batch_images=32,
        micro_batch_images=8,
        image__width=64,
        image__depth=2,
        text__width=64,
    )
    state = new_state(config)
    fill_averages(state.optimizer)
    batches = [batch_from(noise(config, 8)).to(CPU) for _ in range(4)]
    step = partial(train_step, state, batches, config, keep_graph=True)
    step()
    held = sum(getattr(batch, field.name).nbytes for batch in batches for field in fields(batch))
    assert traced(config, is_sharded=False).peak_bytes == pytest.approx(peak_bytes(state, step, CPU) + held, rel=0.1)


def test_drop_path_copies_and_a_teacher_of_heads_alone_can_be_traced():
    trace = traced(
        toy_run(
            image__drop_path_rate=0.1,
            resources__replicas=2,
            objective__teacher="ema_heads",
            optimizer__name="adafactor",
        )
    )
    assert _sent(trace)["all-reduce", "backward"] > 0


def test_live_storages_counts_what_lives_at_the_same_time():
    with LiveStorages(num_prototypes=7) as live:
        live.restart()
        first = torch.ones(100)
        second = torch.ones(3, 7)
        del first
        third = torch.ones(10)
    assert live.peak == {"temporaries": 400, "prototype scores": 84}
    assert live.now == second.nbytes + third.nbytes


def test_the_largest_micro_batch_is_the_largest_divisor_that_fits():
    def trace(config):
        return StepTrace({"all": 1000 + 10 * config.images_per_pass}, "backward", ())

    # 24 images a worker: 1, 2, 3, 4, 6, 8, 12, 24
    config = toy_run(global_batch_images=4 * 24, resources__keep_embedding_graph=False)
    found = [largest_micro_batch(config, limit, trace).images for limit in (1119, 1120, 9999, 1009)]
    assert found == [8, 12, 24, 0]


@pytest.mark.parametrize(
    ("limit", "found"),
    [
        (1240, (24, 0)),  # all in one pass, which has no second forward
        (1239, (12, 6)),  # with graphs 8 images take 1240
        (1200, (12, 6)),
        (1079, (6, 0)),  # with graphs 3 images take 1090, fewer are less than half of 6
        (1009, (0, None)),
    ],
)
def test_with_graphs_at_least_half_as_many_images_are_looked_for(limit, found):
    """An image takes 10, and 20 more in the first passes' graphs."""

    def trace(config):
        slope = 30 if config.keeps_embedding_graph else 10
        return StepTrace({"all": 1000 + slope * config.images_per_pass}, "backward", ())

    config = toy_run(global_batch_images=4 * 24)
    largest = largest_micro_batch(config, limit, trace)
    assert largest == found
    run = settled(config, largest)
    assert run.images_per_pass == (found[1] or found[0] or 1) and run.keeps_embedding_graph == bool(found[1])


def test_a_size_whose_own_trace_does_not_fit_is_passed_over():
    def trace(config):
        images = config.images_per_pass
        return StepTrace({"all": 10 * images + (500 if images > 8 else 0)}, "backward", ())

    assert largest_micro_batch(toy_run(global_batch_images=4 * 24), 300, trace).images == 8
