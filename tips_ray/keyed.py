"""Randomness keyed by sample: a pure function of integers, equal on every worker, in every pass, on every device.

A key is an int64 made from (seed, epoch, sample id). B samples on this rank.
"""

import torch
from torch import Tensor

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64: the increment of splitmix64
_MIX_1, _MIX_2 = -4658895280553007687, -7723592293110705685  # its two multipliers


def derived(key_B: Tensor, salt: int) -> Tensor:
    """New independent keys, int64, for one use of the sample (a view, a block, a draw).

    Source: splitmix64 (Steele, Lea, Flood, OOPSLA 2014) in wrapping int64 arithmetic.
    """
    return _mixed(_mixed(key_B) + (salt + 1) * _GOLDEN % 2**63)


def uniform(key_B: Tensor, salt: int = 0) -> Tensor:
    """Float32 in [0, 1), one per key; different salts give independent draws."""
    return _shifted(derived(key_B, salt), 40).float() / 2**24


def _mixed(state_B: Tensor) -> Tensor:
    state_B = state_B + _GOLDEN
    state_B = (state_B ^ _shifted(state_B, 30)) * _MIX_1
    state_B = (state_B ^ _shifted(state_B, 27)) * _MIX_2
    return state_B ^ _shifted(state_B, 31)


def _shifted(value_B: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch shifts int64 arithmetically."""
    return torch.bitwise_and(value_B >> bits, (1 << (64 - bits)) - 1)
