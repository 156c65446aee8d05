"""Words that sweeps and comparisons share."""

from collections.abc import Iterable


def short(names: Iterable[str]) -> list[str]:
    """The last parts of names with dots or slashes, as long as no two of them are equal."""
    whole = list(names)
    lasts = [name.replace("/", ".").rpartition(".")[2] for name in whole]
    return lasts if len(set(lasts)) == len(lasts) else whole


def counted(number: int, what: str) -> str:
    """`1 setting`, `2 settings`."""
    return f"{number} {what}{'s' * (number != 1)}"
