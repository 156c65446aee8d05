"""A graceful stop: a rank is asked to leave; all ranks agree after a step, save, and leave together.

No step is then computed twice. `adapter` asks one process or all of them when the number of workers changes; a request
in the run folder (`runs.stop`) asks rank 0.
"""

from collections.abc import Callable, Mapping

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


class Paused(GracefulStop):
    """The start has reached the step at which it was to pause; another start goes on from there."""


class Agreement:
    """Whether a rank was asked to leave, or to save; all learn it where they judge a step."""

    def __init__(self, asked: Callable[[], str] = lambda: "", is_old: Callable[[], bool] = lambda: False) -> None:
        """
        Args:
            asked: why this rank should leave; empty while it should not.
            is_old: whether this rank thinks that the last checkpoint is too old.
        """
        self.asked, self.is_old = asked, is_old
        self.is_leaving, self.is_saving = False, False

    def votes(self, like: Tensor) -> dict[str, Tensor]:
        """This rank's parts of the means over ranks; scalars on the device of `like`, made without waiting for it."""
        votes = {"asked": bool(self.asked()), "is_old": self.is_old()}
        return {name: like.new_full((), float(vote)) for name, vote in votes.items()}

    def count(self, means: Mapping[str, float]) -> None:
        self.is_leaving, self.is_saving = means["asked"] > 0, means["is_old"] > 0
