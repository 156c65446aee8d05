"""Which worker gets which rows: numbers by hand."""

from tips_ray.data.deal import Deal

DEAL = Deal(start=10, stop=34, rows=4, workers=2)
"""Six micro-batches: [10, 14), [14, 18), ... [30, 34)."""


def test_micro_batches_go_to_the_workers_in_turn():
    assert [list(DEAL.micro_batches(rank, 0, 100)) for rank in (0, 1)] == [[0, 2, 4], [1, 3, 5]]
    assert [DEAL.positions(number) for number in (0, 2, 5)] == [(10, 14), (18, 22), (30, 34)]


def test_a_stretch_touches_the_micro_batches_that_have_rows_in_it():
    assert [list(DEAL.micro_batches(rank, 15, 19)) for rank in (0, 1)] == [[2], [1]]  # [14, 18) and [18, 22)
    assert [list(DEAL.micro_batches(rank, 14, 18)) for rank in (0, 1)] == [[], [1]]
    assert [list(DEAL.micro_batches(rank, 0, 10)) for rank in (0, 1)] == [[], []]
    assert [list(DEAL.micro_batches(rank, 34, 50)) for rank in (0, 1)] == [[], []]


def test_a_stretch_has_receivers():
    assert Deal(0, 800, 4, 64).receivers(5, 13) == {1, 2, 3}
    assert Deal(0, 800, 4, 64).receivers(400, 800) == set(range(64)) and Deal(0, 800, 4, 64).receivers(8, 8) == set()
