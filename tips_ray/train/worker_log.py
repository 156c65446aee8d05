"""The log of a worker: every line has its time, level, rank and optimizer step."""

import logging
import os
from collections.abc import Callable

from tips_ray.distributed import rank

LEVEL = "TIPS_RAY_LOG_LEVEL"
"""Environment variable with a level of `logging`, such as INFO or WARNING."""
LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")
FORMAT = "%(asctime)s %(levelname)s rank %(rank)d step %(step)d %(name)s: %(message)s"


class _Place(logging.Filter):
    """Adds to a record where it comes from."""

    step: Callable[[], int] = staticmethod(lambda: 0)

    def filter(self, record: logging.LogRecord) -> bool:
        record.rank, record.step = rank(), self.step()
        return True


_PLACE = _Place()


def log_to_stderr(default_level: str) -> None:
    """Write what `tips_ray` logs in this process to stderr; a second call changes nothing.

    Args:
        default_level: lowest level to write, unless `TIPS_RAY_LOG_LEVEL` names another.

    Raises:
        ValueError: `TIPS_RAY_LOG_LEVEL` names no level.
    """
    logger, level = logging.getLogger("tips_ray"), os.environ.get(LEVEL, default_level)
    if level.upper() not in LEVELS:
        raise ValueError(f"{LEVEL} ({level}) must be one of {', '.join(LEVELS)}")
    if any(_PLACE in handler.filters for handler in logger.handlers):
        return
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(_PLACE)
    logger.addHandler(handler)
    logger.setLevel(level.upper())
    logger.propagate = False


def follow_step(step: Callable[[], int]) -> None:
    """Later lines tell the step that `step` returns."""
    _PLACE.step = step
