"""A planned change of the workers: a rank is asked to leave, all agree at a step's border, save, and leave together.

Nothing is then computed twice. Whoever plans the change (`adapter`) asks one process or all of them.
"""

from collections.abc import Callable

from torch import Tensor

_reason = ""


class GracefulStop(Exception):
    """All ranks have left after a checkpoint; another group of workers goes on from it. The message says why."""


class StuckStop(GracefulStop):
    """A group that was asked to leave and does not is stopped; what it did since the last checkpoint is done again."""


def ask(reason: str) -> None:
    """This process is to leave soon; may come from another thread than the one that trains."""
    global _reason
    _reason = reason


def asked() -> str:
    """Why this process is to leave, empty if it is not."""
    return _reason


class Agreement:
    """Whether a rank is asked to leave: all ranks learn it at the one wait for the device that every step has."""

    def __init__(self, asked: Callable[[], str] = lambda: "") -> None:
        self.asked, self.is_reached = asked, False

    def vote(self, like: Tensor) -> Tensor:
        """This rank's part of the mean over ranks; scalar on the device of `like`, made without waiting for it."""
        return like.new_full((), float(bool(self.asked())))

    def count(self, mean: float) -> None:
        self.is_reached = mean > 0
