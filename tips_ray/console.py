"""What a command says on stdout while it works: lines for people, JSON objects for programs, or nothing.

The form holds for the whole process; the command line sets it. Errors are told in any form: people read them on stderr.

Modules that a file of the working directory may hide are imported late: a command checks for such files first.
"""

import sys
from typing import Any, Literal

Form = Literal["lines", "json", "quiet"]
_form: Form = "lines"


def speak(form: Form) -> None:
    """Set the form of all that is told from now on."""
    global _form
    _form = form


def form() -> Form:
    """The form of all that is told now."""
    return _form


def tell(kind: str, text: str, **facts: Any) -> None:
    """Tell one thing: `text` as a line, above a progress bar if there is one, or an object of kind, text and facts."""
    if _form == "json":
        _write({"kind": kind, "text": " ".join(text.split()), **facts})
    elif _form == "lines":
        from tqdm import tqdm

        tqdm.write(text, file=sys.stdout)
        sys.stdout.flush()


def tell_error(text: str, kind: str = "error", mark: str = "error: ", **facts: Any) -> None:
    """Tell an error or another end of the command, after `mark` on stderr or as an object on stdout."""
    if _form == "json":
        _write({"kind": kind, "text": text, **facts})
    else:
        print(f"{mark}{text}", file=sys.stderr)


def _write(told: dict[str, Any]) -> None:
    import json
    from datetime import UTC, datetime

    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    text = json.dumps(_plain({"time": now, **told}), default=str, allow_nan=False)
    sys.stdout.write(f"{text}\n")  # one write, so that lines of two threads do not mix
    sys.stdout.flush()


def _plain(value: Any) -> Any:
    """The value without numbers that JSON does not have."""
    from math import isfinite

    if isinstance(value, dict):
        return {key: _plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(part) for part in value]
    return None if isinstance(value, float) and not isfinite(value) else value
