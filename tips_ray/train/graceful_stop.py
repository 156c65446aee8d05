"""A graceful stop: a rank is asked to leave; all ranks agree after a step, save, and leave together.

No step is then computed twice. `adapter`, which decides on it, asks one process or all of them.
"""

from collections.abc import Callable

from torch import Tensor

_reason = ""


class GracefulStop(Exception):
    """All ranks have left after a checkpoint; another worker group continues from it. The message says why."""


class StuckStop(GracefulStop):
    """A group that was asked to leave and did not is stopped; its steps since the last checkpoint are repeated."""


def ask(reason: str) -> None:
    """Ask this process to leave soon; may be called from another thread than the one that trains."""
    global _reason
    _reason = reason


def asked() -> str:
    """Why this process should leave; empty if it should not."""
    return _reason


class Agreement:
    """Whether a rank was asked to leave; all ranks learn it at the one wait for the device in every step."""

    def __init__(self, asked: Callable[[], str] = lambda: "") -> None:
        self.asked, self.is_reached = asked, False

    def vote(self, like: Tensor) -> Tensor:
        """This rank's part of the mean over ranks; scalar on the device of `like`, made without waiting for it."""
        return like.new_full((), float(bool(self.asked())))

    def count(self, mean: float) -> None:
        self.is_reached = mean > 0
