import pickle
import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tips_ray.data.order import Order, permutation, sample_keys


def _order(rows_by_source, shares=None, seed=0, window_chunks=3, global_batch_images=7) -> Order:
    rows = np.concatenate([np.asarray(rows, np.int64) for rows in rows_by_source])
    source = np.repeat(np.arange(len(rows_by_source)), [len(rows) for rows in rows_by_source])
    shares = shares or [1.0] * len(rows_by_source)
    return Order(rows, np.cumsum(rows) - rows, source, shares, seed, window_chunks, global_batch_images)


def _mixed(state: int) -> int:
    """splitmix64 as published, in Python's integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


rows_of_chunks = st.lists(st.integers(1, 9), min_size=1, max_size=20)
seeds = st.integers(0, 2**31)
shares = st.floats(0.05, 3)
on_a_busy_machine = settings(deadline=None, max_examples=60)


@on_a_busy_machine
@given(rows_of_chunks, seeds, st.integers(1, 5), st.integers(0, 3))
def test_every_epoch_covers_every_sample_exactly_once(rows, seed, window_chunks, epoch):
    order = _order([rows], seed=seed, window_chunks=window_chunks)
    found = order.rows(epoch * sum(rows), (epoch + 1) * sum(rows))
    assert sorted(found.sample_id_N) == list(range(sum(rows)))


@pytest.mark.heavy
@on_a_busy_machine
@given(rows_of_chunks, rows_of_chunks, shares, seeds)
def test_with_a_second_source_every_epoch_still_covers_the_first_exactly_once(first, second, share, seed):
    order = _order([first, second], [1, share], seed=seed)
    for epoch in range(3):
        found = order.rows(order.epoch_start(epoch), order.epoch_start(epoch + 1)).sample_id_N
        assert sorted(found[found < sum(first)]) == list(range(sum(first)))


@pytest.mark.heavy
@on_a_busy_machine
@given(rows_of_chunks, rows_of_chunks, shares, seeds)
def test_a_pass_over_a_further_source_ends_before_the_next_begins(first, second, share, seed):
    order = _order([first, second], [1, share], seed=seed)
    plans = [order.epoch_plan(epoch) for epoch in range(6)]
    chunks = np.concatenate([plan.chunk_E for plan in plans])
    drawn = chunks[chunks >= len(first)]
    for start in range(0, len(drawn), len(second)):
        one_pass = drawn[start : start + len(second)]
        assert len(set(one_pass)) == len(one_pass)
    numbers = np.concatenate([plan.pass_E for plan in plans])[chunks >= len(first)]
    assert numbers.tolist() == [number // len(second) for number in range(len(drawn))]


@pytest.mark.heavy
@on_a_busy_machine
@given(rows_of_chunks, rows_of_chunks, shares, seeds)
def test_a_share_is_kept_to_a_chunk_over_any_number_of_epochs(first, second, share, seed):
    order = _order([first, second], [1, share], seed=seed)
    quota = Fraction(repr(share)) * sum(first) * len(second) / sum(second)
    for epochs in (1, 4, 9):
        drawn = sum(int((order.epoch_plan(epoch).chunk_E >= len(first)).sum()) for epoch in range(epochs))
        assert 0 <= epochs * quota - drawn < 1


@on_a_busy_machine
@given(rows_of_chunks, st.lists(rows_of_chunks, max_size=2), shares, seeds, st.integers(1, 5))
def test_positions_are_contiguous_over_windows_and_epochs(first, others, share, seed, window_chunks):
    order = _order([first, *others], [1, *[share] * len(others)], seed, window_chunks)
    windows = [order.window_rows(window) for window in range(3 * order.windows_per_epoch)]
    positions = np.concatenate([window.position_N for window in windows])
    assert positions.tolist() == list(range(order.epoch_start(3)))
    for number, window in enumerate(windows):
        assert order.window_start(number) == sum(len(before.position_N) for before in windows[:number])
        assert {order.window_of(int(position)) for position in window.position_N} <= {number}


@on_a_busy_machine
@given(rows_of_chunks, rows_of_chunks, shares, seeds, st.integers(1, 30), st.integers(0, 12))
def test_a_batch_is_the_same_from_any_starting_point(first, second, share, seed, global_batch_images, step):
    arguments = ([first, second], [1, share], seed, 3, global_batch_images)
    order = _order(*arguments)
    expected = order.batch(step)
    assert expected.position_N.tolist() == list(range(step * global_batch_images, (step + 1) * global_batch_images))
    assert set(expected.step_N) == {step} == {order.step_of(int(position)) for position in expected.position_N}
    for start in {0, step // 2, step}:
        run = _order(*arguments)
        rest = run.rows(start * global_batch_images, (step + 2) * global_batch_images)
        same = rest.between(step * global_batch_images, (step + 1) * global_batch_images)
        assert all(np.array_equal(one, other) for one, other in zip(same, expected, strict=True))


@on_a_busy_machine
@given(rows_of_chunks, seeds)
def test_rows_name_their_chunk_and_their_sample(rows, seed):
    found = _order([rows], seed=seed).rows(0, sum(rows))
    first_samples = np.cumsum(rows) - rows
    assert (found.row_N < np.asarray(rows)[found.chunk_N]).all()
    assert np.array_equal(first_samples[found.chunk_N] + found.row_N, found.sample_id_N)


@on_a_busy_machine
@given(rows_of_chunks, st.integers(1, 5))
def test_a_window_holds_its_chunks_and_no_others(rows, window_chunks):
    order = _order([rows], window_chunks=window_chunks)
    assert order.windows_per_epoch == -(-len(rows) // window_chunks)
    chunks = [set(order.window_rows(window).chunk_N) for window in range(order.windows_per_epoch)]
    assert sorted(map(len, chunks), reverse=True)[:-1] == [window_chunks] * (len(chunks) - 1)
    assert set.union(*chunks) == set(range(len(rows))) and sum(map(len, chunks)) == len(rows)


def test_other_seeds_and_other_epochs_give_other_orders():
    orders = [_order([[4] * 50], seed=seed).rows(start, start + 200) for seed in (0, 1) for start in (0, 200)]
    assert len({tuple(rows.sample_id_N) for rows in orders}) == 4
    assert len({int(key) for rows in orders for key in rows.sample_key_N}) == 800


def test_the_order_is_the_documented_one_written_plainly():
    rows, seed, window_chunks = [3, 2, 3, 1, 4], 5, 2
    expected = []
    for epoch in range(2):
        chunks = _permuted(list(range(len(rows))), seed, 1, 0, epoch)
        for window, first in enumerate(range(0, len(chunks), window_chunks)):
            held = chunks[first : first + window_chunks]
            samples = [sum(rows[:chunk]) + row for chunk in held for row in range(rows[chunk])]
            expected += _permuted(samples, seed, 3, epoch, window)
    found = _order([rows], seed=seed, window_chunks=window_chunks).rows(0, 2 * sum(rows))
    assert found.sample_id_N.tolist() == expected


def _permuted(items, *key):
    """Items sorted by a splitmix64 key of their place; the bits that hold the place break ties."""
    bits = len(items).bit_length()
    return [items[place] for place in sorted(range(len(items)), key=lambda place: (_key(*key, place) >> bits, place))]


def _key(*numbers: int) -> int:
    state = 0
    for number in numbers:
        state = _mixed((state + number) % 2**64)
    return state


def test_rows_of_a_window_are_mixed_across_its_chunks():
    chunks = _order([[64] * 64], window_chunks=64).window_rows(0).chunk_N
    assert (np.diff(chunks) == 0).mean() < 0.05


def test_a_sample_that_comes_twice_in_an_epoch_has_two_keys():
    rows = _order([[10] * 10, [2]], [1, 0.2]).rows(0, 120)
    of_second = rows.sample_key_N[rows.sample_id_N == 100]
    assert len(of_second) == 10 == len(set(of_second))


@on_a_busy_machine
@given(st.integers(0, 2**63 - 1), st.integers(0, 1000), st.integers(0, 2**62))
def test_sample_keys_are_splitmix64_of_seed_epoch_and_sample(seed, epoch, sample_id):
    keys = sample_keys(seed, epoch, np.array([sample_id]))
    assert keys.dtype == np.int64 and int(keys[0]) % 2**64 == _key(seed, epoch, sample_id)


def test_permutations_are_uniform():
    counts = np.zeros((5, 5))
    for key in range(5000):
        counts[np.arange(5), permutation(5, key)] += 1
    assert abs(counts - 1000).max() < 150


def test_an_order_survives_pickling():
    order = _order([[3, 4, 5], [2, 2]], [1, 0.7])
    order.batch(3)
    copy = pickle.loads(pickle.dumps(order))
    assert np.array_equal(copy.batch(5).sample_key_N, order.batch(5).sample_key_N)


def test_windows_between_positions_are_those_that_hold_them():
    order = _order([[2] * 9], window_chunks=3)
    assert (
        order.windows(5, 7) == range(0, 2) and order.windows(6, 6) == range(0) and order.windows(35, 37) == range(5, 7)
    )


@pytest.mark.parametrize("arguments, words", [(([[1], []],), "no chunks"), (([[1], [1]], [1, 0]), "share of source 1")])
def test_a_source_without_chunks_or_share_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        _order(*arguments)


def test_a_hundred_million_rows_are_planned_in_seconds():
    order = _order([np.full(1_812_500, 64)], window_chunks=64, global_batch_images=16384)
    start = time.perf_counter()
    order.batch(20_000)
    assert time.perf_counter() - start < 10  # under 1 s on a quiet core


@pytest.mark.heavy
@on_a_busy_machine
@given(rows_of_chunks, rows_of_chunks, shares, seeds, st.integers(0, 400))
def test_first_uses_are_those_that_a_walk_through_all_windows_finds(first, second, share, seed, stop):
    order = _order([first, second], [1.0, share], seed)
    walked: dict[int, int] = {}
    for window in order.windows(0, stop):
        for chunk in order.window_rows(window).chunk_N.tolist():
            walked.setdefault(chunk, window)
    window_N, chunk_N = order.first_uses(stop)
    assert dict(zip(chunk_N.tolist(), window_N.tolist(), strict=True)) == walked
    assert len(chunk_N) == len(walked) and (np.diff(window_N) >= 0).all()
