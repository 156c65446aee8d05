"""What the tests of a run start, by kind: how many processes, and the seconds that tests wait for them.

pytest shows the sums at the end of a run (`conftest.py`), with the file that waits longest, so that growth is seen.
"""

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

_costs: dict[str, dict[str, tuple[int, float]]] = defaultdict(dict)
"""By kind and test file: processes started, seconds waited."""
_kinds: list[str] = []
"""The kinds that are waited for now, the innermost last: a wait within a wait counts once."""


@contextmanager
def waiting(kind: str, started: int = 0) -> Iterator[None]:
    """Count the time of the block, and processes of a kind that it starts, for the test that runs now."""
    begin = time.monotonic()
    _kinds.append(kind)
    try:
        yield
    finally:
        _kinds.pop()
        file, seconds = _test_file(), 0.0 if _kinds else time.monotonic() - begin
        before = _costs[kind].get(file, (0, 0.0))
        _costs[kind][file] = (before[0] + started, before[1] + seconds)


def lines() -> Iterable[str]:
    """One line a kind, the longest wait first."""
    for kind, files in sorted(_costs.items(), key=lambda one: -sum(seconds for _, seconds in one[1].values())):
        started, seconds = (sum(values) for values in zip(*files.values(), strict=True))
        most = max(files, key=lambda file: files[file][1])
        yield f"{kind}: {started} started, {seconds:.0f} s of waiting, most in {most} ({files[most][1]:.0f} s)"


def count_commands() -> None:
    """Count, from now on, each command that this process starts, unless it belongs to another kind."""
    start, wait, communicate = subprocess.Popen.__init__, subprocess.Popen.wait, subprocess.Popen.communicate

    def counted(call: Any, started: int) -> Any:
        def instead(*arguments: Any, **named: Any) -> Any:
            if _kinds:
                return call(*arguments, **named)
            with waiting("commands", started):
                return call(*arguments, **named)

        return instead

    subprocess.Popen.__init__ = counted(start, 1)
    subprocess.Popen.wait = counted(wait, 0)
    subprocess.Popen.communicate = counted(communicate, 0)


def _test_file() -> str:
    return os.environ.get("PYTEST_CURRENT_TEST", "no test").partition("::")[0]
