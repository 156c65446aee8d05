"""What a check found: fine, doubtful or wrong, in one sentence."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from tips_ray.launch.failure import sentences


class Doubt(Exception):
    """A check's finding that may matter and stops nothing; the message ends with the cure."""


class Finding(NamedTuple):
    """The outcome of one check."""

    check: str
    level: Literal["ok", "warn", "fail"]
    text: str


def findings(check: str, action: Callable[[], str]) -> list[Finding]:
    """What `action` returns, doubts or complains about. An error that is nobody's mistake is told, not raised."""
    try:
        return [Finding(check, "ok", action())]
    except Doubt as doubt:
        return [Finding(check, "warn", text) for text in sentences(doubt)]
    except (ValueError, OSError) as fault:
        return [Finding(check, "fail", text) for text in sentences(fault)]
    except Exception as error:
        return [Finding(check, "fail", f"{type(error).__name__}: {text}") for text in sentences(error)]
