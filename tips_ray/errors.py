"""Errors: root cause, sentence, and whether another start would meet the error again.

Storage's own failures are in `tips_ray.storage.errors`, wrong configs in `tips_ray.config.faults`.
"""

from collections.abc import Callable, Iterable
from typing import Any, Literal, NamedTuple

ECHOES = ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL", "ProcessGroup", "Broken pipe")
STARTS = "error raised in its creation task"
"""Ray's words for an actor whose start failed with an error, such as an import; its last line is that error."""
OF_MEMORY = ("running low on memory", "NODE_OUT_OF_MEMORY")
"""Ray's words for a process that its memory monitor has ended."""
OF_USER_CODE = "The above exception was the direct cause of the following exception"
"""Between the error of a function that Ray Data called and its own error about it."""
GUESSES = "There are some potential root causes"
"""Ray's words before its guesses why a process is gone: it names memory first, whatever happened."""
MOST_CHARACTERS = 600
"""Longest sentence that is shown, and longest text of a cause."""
LAST_CHARACTERS = 160
"""Characters of a longer sentence that are kept at its end, where the cure stands."""
MOST_NAMES, MOST_SENTENCES = 12, 20


class RunFailedError(Exception):
    """Training stopped; the message says where, why and what to do."""


class RunStopped(Exception):
    """A run was asked to leave, and has; the message says by whom, and how to go on."""

    exit_code = 75
    """EX_TEMPFAIL: a scheduler may queue the job again."""


class RunPaused(RunStopped):
    """A run has reached the step at which it was to pause; the message says which."""


class RunInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; the message says how to go on."""


class CheckWarning(Exception):
    """A warning of a check: it may matter and stops nothing. The message ends with the cure."""


class Faults(ValueError):
    """Independent mistakes, each a sentence with its cure."""

    def __init__(self, sentences: list[str]) -> None:
        super().__init__("; ".join(sentences))
        self.sentences = sentences


class CheckResult(NamedTuple):
    """The outcome of one check."""

    check: str
    level: Literal["ok", "warn", "fail"]
    text: str


def check_results(check: str, action: Callable[[], str]) -> list[CheckResult]:
    """Check results of `action`: its text, warnings or faults. No error is raised, not even an unexpected one."""
    try:
        return [CheckResult(check, "ok", action())]
    except CheckWarning as doubt:
        return [CheckResult(check, "warn", text) for text in sentences(doubt)]
    except (ValueError, OSError) as fault:
        return [CheckResult(check, "fail", text) for text in sentences(fault)]
    except Exception as error:
        return [CheckResult(check, "fail", f"{type(error).__name__}: {text}") for text in sentences(error)]


def sentences(error: BaseException) -> list[str]:
    """The lines that a user reads: one, or one for each of several independent mistakes; what is too long is cut."""
    several: Any = getattr(error, "sentences", None)
    lines = [shortened(" ".join(text.split())) for text in several or [str(error)]]
    more = len(lines) - MOST_SENTENCES
    return lines if more <= 0 else [*lines[:MOST_SENTENCES], f"there are {more:,} more mistakes; mend these first"]


def shortened(text: str) -> str:
    """The text without its middle if it has more than `MOST_CHARACTERS`; it says how many characters are left out."""
    if len(text) < MOST_CHARACTERS:
        return text
    first = MOST_CHARACTERS - LAST_CHARACTERS - 50
    left_out = len(text) - first - LAST_CHARACTERS
    return f"{text[:first]} ... ({left_out:,} more characters) ... {text[-LAST_CHARACTERS:]}"


def listed(names: Iterable[str]) -> str:
    """The first names, each cut to 40 characters, and how many more there are: `a, b and 3,000 more`."""
    every = [name if len(name) <= 40 else f"{name[:37]}..." for name in names]
    more = len(every) - MOST_NAMES
    return ", ".join(every) if more <= 0 else f"{', '.join(every[:MOST_NAMES])} and {more:,} more"


def reader_fault(error: BaseException) -> str:
    """What transformers says about a folder that it cannot load; of one with Python code, our own sentence."""
    if "trust_remote_code" in str(error) or "contains custom code" in str(error):
        return "its auto_map names Python code in the folder, which is never run: give a model of transformers' own"
    return str(error)


def root_cause(error: BaseException) -> BaseException:
    """The innermost error in Ray's wrappers; among several workers' errors, the first that is no echo of another's."""
    if "UserCodeException" in type(error).__name__ and OF_USER_CODE in str(error):
        return _of_ray_data(str(error))
    failures = getattr(error, "worker_failures", None)
    if failures:
        causes = [root_cause(failures[rank]) for rank in sorted(failures)]
        return next((cause for cause in causes if not is_echo(cause)), causes[0])
    for name in ("controller_failure", "health_check_failure", "_base_exc", "cause"):
        inner = getattr(error, name, None)
        if isinstance(inner, BaseException):
            return root_cause(inner)
    return error


def _of_ray_data(text: str) -> BaseException:
    """The error of a function that Ray Data called: only the text of its own error holds it."""
    line = text.split(OF_USER_CODE)[0].strip().splitlines()[-1]
    kind, _, message = line.partition(": ")
    is_sentence = kind.rpartition(".")[2] in ("ValueError", "StorageError", "NotFoundError", "DamagedError")
    return ValueError(message) if is_sentence else RuntimeError(line)


def is_echo(error: BaseException) -> bool:
    """The error only says that another worker is gone."""
    return any(word in str(error) for word in ECHOES)


def is_final(error: BaseException) -> bool:
    """Another start would meet the error again; storage that does not answer may come back."""
    return isinstance(error, (ValueError, FloatingPointError)) and not getattr(error, "may_pass", False)


def last_line(error: BaseException) -> str:
    """Last line of Ray's message about an actor that cannot start: the actor's own error."""
    lines = str(root_cause(error)).strip().splitlines()[-1:] or [type(error).__name__]
    return lines[0].strip()[:MOST_CHARACTERS]


def described(error: BaseException) -> str:
    """A sentence about an error: our own errors are sentences, others get their type as well."""
    cause = root_cause(error)
    kind, text = type(cause).__name__, " ".join(str(cause).split())[:MOST_CHARACTERS].rstrip(".")
    if STARTS in str(cause):
        return f"a process of the run could not start: {last_line(cause)}"
    if "ActorDied" in kind or "WorkerCrashed" in kind:
        return _told_loss(str(cause))
    if "NodeDied" in kind:
        return f"a node of the cluster was lost ({text})"
    if "ActorUnavailable" in kind:
        return f"a process of the cluster does not answer any more ({text})"
    if kind == "WorkerGroupStartupFailedError":
        return text  # as `tips_ray.train.adapter` has worded it
    if is_echo(cause):
        return f"another worker was lost ({text})"
    if "OutOfMemory" in kind:
        return f"memory ran out ({text}); use a smaller micro_batch_images or more workers"
    is_sentence = isinstance(cause, (ValueError, FloatingPointError)) or kind == "StreamError"
    return text if is_sentence and text else f"{kind}: {text}"


def _told_loss(text: str) -> str:
    """The sentence about a process that is gone; memory is blamed only where Ray's memory monitor ended the process."""
    lost = "the run's controller" if "TrainController" in text else "a worker process"
    told = " ".join(text.partition(GUESSES)[0].split())[:MOST_CHARACTERS].rstrip(".")
    if any(words in text for words in OF_MEMORY):
        return f"memory ran out on a node, and Ray ended {lost} ({told}); give the node more memory or fewer processes"
    return f"{lost} was killed or crashed ({told})"
