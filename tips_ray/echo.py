"""Errors with which workers notice that another one is gone."""

WORDS = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "ProcessGroup", "Broken pipe")


def is_echo(error: BaseException) -> bool:
    """The error only says that another worker is gone."""
    return any(word in str(error) for word in WORDS)
