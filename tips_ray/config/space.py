"""Config of a space: the values that keys of a run may take in a sweep."""

from math import log
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from tips_ray.config.schema import Schema

Ends = Annotated[tuple[float, float], Field(description="smallest and largest value")]


class ConditionConfig(Schema):
    """A key has values of its own only while another key has certain ones."""

    key: str
    """Another key of the space."""
    among: tuple[Any, ...] | None = None
    """Values of the other key."""
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if (self.among is None) == (self.above is None and self.below is None):
            raise ValueError(f"when ({self.key}) needs either among: [...], or above and below, or one of these two")
        return self

    def fault(self, other: "DomainConfig") -> str:
        """Why the condition can never hold, or always does; empty: it depends on the other key's value."""
        if self.among is not None:
            unknown = [value for value in self.among if not other.contains(value)]
            return f"among ({unknown[0]}) is no value of {self.key}" if unknown else ""
        examples = other.choice if other.choice is not None else other.ends
        if any(isinstance(value, bool) or not isinstance(value, int | float) for value in examples):
            return f"above and below need numbers, and {self.key} has others: use among"
        holds = [self.holds(value) for value in examples]
        return "" if any(holds) and not all(holds) else f"it holds {'always' if all(holds) else 'never'}"

    def holds(self, value: Any) -> bool:
        """Whether the other key's value is one of those."""
        if self.among is not None:
            return value in self.among
        return (self.above is None or value > self.above) and (self.below is None or value < self.below)


class DomainConfig(Schema):
    """Values that one key may take: one of `choice`, `uniform`, `loguniform`, `integer`."""

    choice: Annotated[tuple[Any, ...], Field(min_length=1)] | None = None
    uniform: Ends | None = None
    loguniform: Ends | None = None
    integer: tuple[int, int] | None = None
    """Whole numbers from the first to the last, both included."""
    points: Annotated[int, Field(ge=2)] | None = None
    """With `search: grid`: so many values from end to end, evenly spaced, of a `loguniform` by their logarithm."""
    prior: Any = None
    """A value that is believed to be good, such as a published one: values near it are drawn more often."""
    when: ConditionConfig | None = None
    """Without it the key always has a value of its own; else the run's value holds while the condition does not."""

    @model_validator(mode="after")
    def _is_one_kind(self) -> Self:
        given = [name for name in ("choice", "uniform", "loguniform", "integer") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give one of choice, uniform, loguniform, integer, not {' and '.join(given) or 'none'}")
        if self.choice is not None and len(set(map(repr, self.choice))) < len(self.choice):
            raise ValueError(f"choice ({list(self.choice)}) names a value twice")
        if self.choice is None:
            low, high = self.ends
            if not low < high:
                raise ValueError(f"{given[0]} ({low:g} to {high:g}) is empty: the first must be below the second")
            if self.loguniform and low <= 0:
                raise ValueError(f"loguniform ({low:g} to {high:g}) must begin above 0")
        if self.prior is not None and not self.contains(self.prior):
            raise ValueError(f"prior ({self.prior}) must be a value of {given[0]}")
        return self

    @property
    def ends(self) -> tuple[float, float]:
        """Smallest and largest number; not of a choice."""
        found = self.uniform or self.loguniform or self.integer
        assert found is not None
        return found

    def contains(self, value: Any) -> bool:
        """Whether a value lies in this domain."""
        if self.choice is not None:
            return value in self.choice
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        low, high = self.ends
        return is_number and low <= value <= high and (self.integer is None or value == round(value))

    def examples(self) -> tuple[Any, ...]:
        """Every choice, or both ends and a number between: if the schema of a run takes these, it takes the others."""
        return self.choice if self.choice is not None else (*self.ends, self.at(0.37))

    def grid(self) -> tuple[Any, ...]:
        """All values of a grid, in rising order.

        Raises:
            ValueError: a range has no `points`.
        """
        if self.choice is not None:
            return self.choice
        if self.integer is not None and self.points is None:
            return tuple(range(self.integer[0], self.integer[1] + 1))
        if self.points is None:
            raise ValueError("a grid needs points: how many values a range has")
        shares = [number / (self.points - 1) for number in range(self.points)]
        return tuple(dict.fromkeys(self.at(share) for share in shares))

    def at(self, share: float) -> Any:
        """The number at a share of the way from the smallest to the largest, to six digits; for a choice that value."""
        if self.choice is not None:
            return self.choice[min(int(share * len(self.choice)), len(self.choice) - 1)]
        low, high = self.ends
        if self.integer is not None:
            return min(max(round(low - 0.5 + share * (high - low + 1)), int(low)), int(high))
        return min(max(float(f"{self.beside(share):.6g}"), low), high)

    def beside(self, share: float) -> float:
        """A number at a share of the way, which may lie outside."""
        low, high = self.ends
        return low * (high / low) ** share if self.loguniform else low + share * (high - low)

    def share_of(self, value: float) -> float:
        """Where a number lies between the smallest, 0, and the largest, 1."""
        low, high = self.ends
        if self.loguniform:
            return log(value / low) / log(high / low)
        return (value - low) / (high - low)
