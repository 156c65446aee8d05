"""Drives a run: `from tips_ray.launch import pretrain; pretrain(config)`.

`pretrain` is imported on first access because it imports torch, which the supervisor of a run does not need.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tips_ray.launch.driver import pretrain

__all__ = ["pretrain"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tips_ray.launch import driver

    return getattr(driver, name)
