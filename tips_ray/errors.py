"""What lies below the errors of workers, and what it means."""

ECHOES = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "ProcessGroup", "Broken pipe")


def root_cause(error: BaseException) -> BaseException:
    """The error at the bottom of what Ray wraps; of several workers' errors one that is no echo of another's."""
    failures = getattr(error, "worker_failures", None)
    if failures:
        causes = [root_cause(failures[rank]) for rank in sorted(failures)]
        return next((cause for cause in causes if not is_echo(cause)), causes[0])
    for name in ("controller_failure", "health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return root_cause(inner)
    return error


def is_echo(error: BaseException) -> bool:
    """The error only says that another worker is gone."""
    return any(word in str(error) for word in ECHOES)
