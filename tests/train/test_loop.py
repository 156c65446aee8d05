"""The loop's limit on bad rows: counted over ranks and restarts, checked at logged steps."""

import itertools
from functools import partial

import pytest
import torch
from ranks import run_on_ranks
from toy import TOY, toy_batch

from tips_ray.batch import Batch
from tips_ray.config import RunConfig, override
from tips_ray.distributed import rank, world_size
from tips_ray.train import loop
from tips_ray.train.health import Health
from tips_ray.train.loop import train
from tips_ray.train.state import TrainState, new_state

IMAGES = 4


class ListRecorder:
    """A recorder that keeps all calls."""

    def __init__(self) -> None:
        self.fractions: dict[int, float] = {}
        self.saved: dict[int, int] = {}
        self.metrics: dict[int, dict[str, float]] = {}

    def log(self, step: int, metrics: dict[str, float]) -> None:
        self.fractions[step] = metrics["data/bad_fraction"]
        self.metrics[step] = metrics

    def save(self, state: TrainState, metrics: dict[str, float]) -> None:
        self.saved[state.step] = state.bad_rows

    def save_bad_step(self, state, micro_batches, facts) -> str:
        raise AssertionError("no step of this file is bad")

    def rejects(self) -> str:
        return "commonest reasons: none"


def _config(max_bad_fraction: float, **values) -> RunConfig:
    run = {"name": "toy", "data": {"sources": [{"uri": "x"}], "max_bad_fraction": max_bad_fraction}}
    sizes = {"global_batch_images": IMAGES * world_size(), "resources": {"workers": world_size()}}
    keys = {key.replace("__", "."): value for key, value in values.items()}
    return override(RunConfig, {**TOY, **run, **sizes, "log_every_steps": 2, "checkpoint_every_steps": 4}, keys)


def _batches(invalid: list[tuple[int, ...]]) -> list[list[Batch]]:
    """Steps of one micro-batch; `invalid` names the bad rows of each step, in turn."""
    batches = [toy_batch(IMAGES, seed, bad).to("cpu", torch.float32) for seed, bad in enumerate(invalid)]
    return [[batch] for batch in batches]


def test_bad_rows_below_the_limit_are_a_metric_and_part_of_the_state():
    recorder, config = ListRecorder(), _config(0.3)
    train(new_state(config), itertools.cycle(_batches([(0,), ()])), config, recorder)
    assert recorder.fractions == {1: 1 / 4, 2: 1 / 8, 4: 2 / 16, 6: 3 / 24, 8: 4 / 32, 10: 5 / 40}
    assert recorder.saved == {4: 2, 8: 4, 10: 5}


def test_a_run_stops_when_the_bad_rows_exceed_its_share_of_a_short_run():
    recorder, config = ListRecorder(), _config(0.3)  # 40 rows in all: more than 12 are too many
    with pytest.raises(ValueError, match=r"^16 of 32 rows up to step 8 are bad \(50\.0%\).*0\.3.*commonest reasons"):
        train(new_state(config), itertools.cycle(_batches([(1, 2)])), config, recorder)
    assert list(recorder.saved) == [4] and max(recorder.fractions) == 8


def test_one_early_bad_row_does_not_stop_a_long_run():
    config = _config(0.01, schedule__total_steps=1000)
    with pytest.raises(StopIteration):  # the data end, not the run
        train(new_state(config), iter(_batches([(0,), (), ()])), config, ListRecorder())


def test_a_limit_of_zero_allows_no_bad_row():
    config = _config(0)
    with pytest.raises(ValueError, match="^1 of 4 rows up to step 1 are bad"):
        train(new_state(config), iter(_batches([(3,)])), config, ListRecorder())


def test_the_count_goes_on_after_a_restart():
    config = _config(0.3)
    state = new_state(config)
    state.step, state.bad_rows = 4, 12
    with pytest.raises(ValueError, match="^13 of 24 rows up to step 6"):
        train(state, iter(_batches([(), (2,)])), config, ListRecorder())


@pytest.mark.heavy
def test_all_ranks_stop_at_the_same_step_over_the_bad_rows_of_one():
    for words in run_on_ranks(2, _stopped):
        assert words.startswith("30 of 80 rows up to step 10 are bad")


def _stopped() -> str:
    config = _config(0.3)  # 80 rows in all: more than 24 are too many
    steps = itertools.cycle(_batches([(0, 1, 2)] if rank() else [()]))
    with pytest.raises(ValueError) as error:
        train(new_state(config), steps, config, ListRecorder())
    return str(error.value)


def test_effective_ranks_are_in_the_first_the_last_and_every_tenth_line():
    config = _config(1, schedule__total_steps=43, checkpoint_every_steps=1000)  # lines 1, 2, 4, ..., 42, 43
    train(new_state(config), itertools.cycle(_batches([()])), config, recorder := ListRecorder())
    lines = [step for step, found in recorder.metrics.items() if "health/cls_web/effective_rank" in found]
    assert lines == [1, 20, 40, 43]


def test_information_is_told_once_enough_images_were_logged_with_the_losses_of_their_steps(monkeypatch):
    """4 images a line: those of steps 1 and 2 fill a window of 8. The student predicts less than the targets tell."""
    monkeypatch.setattr(loop, "Health", partial(Health, window_images=8))
    train(new_state(_config(1)), itertools.cycle(_batches([()])), _config(1), recorder := ListRecorder())
    for head in ("distillation", "masked_image"):
        told = {step: found.get(f"health/{head}/information") for step, found in recorder.metrics.items()}
        assert [step for step, value in told.items() if value is None] == [1]
        steps = (recorder.metrics[step] for step in (1, 2))
        excess = sum(found[f"loss/{head}"] - found[f"health/{head}/target_entropy"] for found in steps) / 2
        second = recorder.metrics[2]
        gap = second[f"health/{head}/mutual_information"] - second[f"health/{head}/information"]
        assert gap > 0 and (head == "masked_image" or gap == pytest.approx(excess, rel=1e-4))


def test_the_wait_for_data_is_what_the_stream_says_where_it_says_it():
    for waited, is_some in ((lambda: 0.0, False), (None, True)):
        recorder = ListRecorder()
        train(new_state(config := _config(1)), itertools.cycle(_batches([()])), config, recorder, waited=waited)
        assert (recorder.metrics[2]["data_wait_share"] > 0) == is_some
