"""How many examples a fuzz tries, and damage to bytes that its tests share.

A few in the suite, always the same ones; `TIPS_RAY_FUZZ=1000` (`make fuzz`, a part of `make test-all`) tries that many.
"""

import os
from collections.abc import Callable
from typing import NamedTuple

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

EXAMPLES = int(os.environ.get("TIPS_RAY_FUZZ", "40"))
NO_DAMAGE = 2**62

fuzz = settings(
    deadline=None,
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
"""Decorates a test beside `given`."""


class Damage(NamedTuple):
    """Bytes [start, stop) of the written file are not there any more; those from `moved` on lie elsewhere."""

    kind: str
    start: int = NO_DAMAGE
    stop: int = NO_DAMAGE
    moved: int = NO_DAMAGE

    def changes(self, start: int, stop: int) -> bool:
        """Whether any of the bytes [start, stop) is another, or there is one between them."""
        return self.start < stop and start < self.stop

    def touches(self, start: int, stop: int) -> bool:
        """Whether any of the bytes [start, stop) is another or elsewhere."""
        return self.changes(start, stop) or self.moved < stop


def _flipped(content: bytearray, at: int, size: int) -> Damage:
    content[at] ^= 1 << size % 8
    return Damage("flipped", at, at + 1)


def _zeros(content: bytearray, at: int, size: int) -> Damage:
    at, stop = at // 512 * 512, min(at // 512 * 512 + 512 * (1 + size), len(content))
    content[at:stop] = bytes(stop - at)
    return Damage("zeros", at, stop)


def _noise(content: bytearray, at: int, size: int) -> Damage:
    stop = min(at + 40 * size + 1, len(content))
    content[at:stop] = bytes((7 * place + size) % 251 for place in range(at, stop))
    return Damage("noise", at, stop)


def _cut(content: bytearray, at: int, size: int) -> Damage:
    stop = len(content)
    del content[at:]
    return Damage("cut", at, stop, moved=at)


def _left_out(content: bytearray, at: int, size: int) -> Damage:
    del content[at : at + 1 + 97 * size]
    return Damage("left out", at, at + 1 + 97 * size, moved=at)


def _put_in(content: bytearray, at: int, size: int) -> Damage:
    content[at:at] = b"x" * (1 + 97 * size)
    return Damage("put in", at, at + 1, moved=at)


def _none(content: bytearray, at: int, size: int) -> Damage:
    return Damage("none")


_KINDS: list[Callable[[bytearray, int, int], Damage]] = [
    _none, _flipped, _zeros, _noise, _cut, _left_out, _put_in,
]  # fmt: skip
damages = st.tuples(st.sampled_from(_KINDS), st.floats(0, 1, exclude_max=True), st.integers(0, 30))
"""What is done to a file, where (as a share of its bytes), and how much."""


def damaged(content: bytes, damage: tuple[Callable[[bytearray, int, int], Damage], float, int]) -> tuple[bytes, Damage]:
    """The bytes after one of `damages`, and what is wrong with them."""
    kind, share, size = damage
    changed = bytearray(content)
    found = kind(changed, int(share * len(content)), size)
    return bytes(changed), found
