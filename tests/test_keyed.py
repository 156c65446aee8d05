import torch

from tips_ray import keyed


def _splitmix64(state: int) -> int:
    """The published algorithm in Python's unbounded integers."""
    mask = 2**64 - 1
    z = (state + 0x9E3779B97F4A7C15) & mask
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
    return z ^ (z >> 31)


def test_the_mix_is_splitmix64_bit_by_bit():
    keys = torch.tensor([0, 1, -1, 2**62, -(2**63)])
    expected = [_splitmix64(key % 2**64) for key in keys.tolist()]
    assert [value % 2**64 for value in keyed._mixed(keys).tolist()] == expected


def test_draws_are_uniform_and_independent_between_salts():
    keys = torch.arange(100_000)
    first, second = keyed.uniform(keys, 0), keyed.uniform(keys, 1)
    for draw in (first, second):
        assert 0 <= draw.min() and draw.max() < 1
        assert (draw.histc(10, 0, 1) - 10_000).abs().max() < 500
    assert torch.corrcoef(torch.stack([first, second]))[0, 1].abs() < 0.02


def test_a_draw_depends_on_its_key_alone():
    keys = torch.tensor([5, 9, 5])
    draw = keyed.uniform(keys, 3)
    assert draw[0] == draw[2] == keyed.uniform(keys[:1], 3)[0] and draw[0] != draw[1]
