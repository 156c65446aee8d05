"""Random draws of one scene: equal on every platform and in every numpy version."""

from collections.abc import Iterator, Sequence
from operator import index as as_integer
from typing import TypeVar

import numpy as np

Option = TypeVar("Option")


class Dice:
    """Draws keyed by (seed, index), taken in order from the raw 64-bit words of Philox.

    Raises:
        ValueError: seed or index is negative or above 64 bits.
    """

    def __init__(self, seed: int, index: int) -> None:
        for name, value in (("seed", seed), ("index", index)):
            if not 0 <= as_integer(value) < 2**64:
                raise ValueError(f"{name} ({value}) must be in [0, 2**64)")
        self._units = _units(np.random.Philox(key=np.array([seed, index], np.uint64)))

    def uniform(self, low: float, high: float) -> float:
        return low + (high - low) * next(self._units)

    def integer(self, low: int, high: int) -> int:
        """An integer in [low, high), each equally likely."""
        return low + int((high - low) * next(self._units))

    def choice(self, options: Sequence[Option]) -> Option:
        return options[self.integer(0, len(options))]

    def sample(self, options: Sequence[Option], count: int) -> list[Option]:
        """`count` different options, in random order."""
        left = list(options)
        return [left.pop(self.integer(0, len(left))) for _ in range(count)]


def _units(words: np.random.Philox) -> Iterator[float]:
    """Random multiples of 2**-53 in [0, 1)."""
    while True:
        yield from ((words.random_raw(64) >> np.uint64(11)) * 2.0**-53).tolist()
