"""Numbers, times and tables as a person reads them."""

from collections.abc import Sequence


def bytes_text(count: float) -> str:
    """Bytes as text, such as `323 kB`."""
    units = ("B", "kB", "MB", "GB", "TB")
    power = min((len(str(int(count))) - 1) // 3, len(units) - 1)
    return f"{count / 1000**power:.3g} {units[power]}"


def seconds_text(seconds: float) -> str:
    """A short time as text, such as `2.51 s`, `37 ms`, `1.6 ms` or `0 s`."""
    if seconds >= 1 or not seconds:
        return f"{seconds:.2f} s" if seconds else "0 s"
    return f"{1e3 * seconds:.0f} ms" if seconds >= 0.01 else f"{1e3 * seconds:.2g} ms"


def ago(seconds: float) -> str:
    """`45 s`, `12 min`, `5 h`, `3 days`."""
    for unit, size, most in (("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        if seconds < most:
            return f"{max(seconds, 0) / size:.0f} {unit}"
    return f"{seconds / 86_400:.0f} days"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns of text, aligned."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths, strict=True)] for line in (heads, *rows)]
    return "\n".join("  ".join(line).rstrip() for line in lines)
