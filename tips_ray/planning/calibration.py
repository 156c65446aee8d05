"""How far earlier plans were off on a kind of machine, and the ratio that corrects the next one."""

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

from tips_ray import storage

VERSION = 1
SHOWN = 5
"""Last predictions whose errors are told."""


@dataclass(frozen=True)
class Comparison:
    """A finished run beside its plan. All values have the plan's names and units."""

    machine: str
    """Kind, such as `h100`: ratios of one kind correct plans of this kind alone."""
    run: str
    time: str
    """When it was compared, ISO."""
    raw: Mapping[str, float]
    """Planned before any correction."""
    predicted: Mapping[str, float]
    """Planned with what the earlier comparisons had taught."""
    measured: Mapping[str, float]

    def ratio(self, quantity: str) -> float | None:
        """Measured over planned before correction; None where one is missing."""
        planned, found = self.raw.get(quantity), self.measured.get(quantity)
        return found / planned if planned and found else None

    def error(self, quantity: str) -> float | None:
        """Predicted over measured, less 1: 0.1 is a tenth too high."""
        predicted, found = self.predicted.get(quantity), self.measured.get(quantity)
        return predicted / found - 1 if predicted and found else None


def default_file() -> str:
    """`tips_ray/plans.json` in the user's data folder (XDG_DATA_HOME, else ~/.local/share)."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return str(Path(base, "tips_ray", "plans.json"))


def read(uri: str) -> list[Comparison]:
    """All comparisons of the file, oldest first; none where there is no file.

    Raises:
        ValueError: the file is something else.
    """
    try:
        tree = json.loads(storage.read_text(uri))
        if tree["version"] != VERSION:
            raise ValueError(f"version {tree['version']}")
        return [Comparison(**entry) for entry in tree["comparisons"]]
    except storage.NotFoundError:
        return []
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{uri} holds no comparisons of plans ({error}): move it away, or give --calibration"
        ) from None


def with_comparison(known: Sequence[Comparison], new: Comparison) -> list[Comparison]:
    """The list with `new` at its end; an earlier comparison of the same run goes."""
    return [one for one in known if one.run != new.run] + [new]


def write(uri: str, comparisons: Sequence[Comparison]) -> None:
    """Replace the file."""
    tree = {"version": VERSION, "comparisons": [asdict(one) for one in comparisons]}
    storage.write_text(uri, json.dumps(tree, indent=1) + "\n")


def ratios(comparisons: Sequence[Comparison], machine: str) -> dict[str, float]:
    """Median of measured over planned on this kind of machine, by quantity."""
    of_kind = [one for one in comparisons if one.machine == machine]
    names = sorted({name for one in of_kind for name in one.measured})
    found = {name: [ratio for one in of_kind if (ratio := one.ratio(name)) is not None] for name in names}
    return {name: median(values) for name, values in found.items() if values}


def errors(comparisons: Sequence[Comparison], machine: str, last: int = SHOWN) -> dict[str, list[float]]:
    """Errors of the last predictions on this kind of machine, by quantity, oldest first."""
    of_kind = [one for one in comparisons if one.machine == machine]
    names = sorted({name for one in of_kind for name in one.measured})
    found = {name: [error for one in of_kind if (error := one.error(name)) is not None] for name in names}
    return {name: values[-last:] for name, values in found.items() if values}
