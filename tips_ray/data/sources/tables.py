"""Delimited text (CSV, TSV, `;`, `|`) read whole where the reading is certain, else refused with line numbers.

The delimiter is the one that occurs most often in the first line, which names the columns. Quotation marks may enclose
cells or be a part of the text, so the text is read in several ways, and the first way is taken in which every line has
as many cells as the first one. A way in which one cell takes in lines that look like rows of their own is never taken.
"""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

DELIMITERS = ",\t;|"
MOST_MISFITS = 0.01
"""Share of lines with another number of cells up to which a table is read without these lines."""
SHORT_BY_CUSTOM = 0.1
"""Where a larger share of lines ends early, the writer leaves out empty cells at the end of a line."""
NAMED_LINES = 5
MOST_SAMPLED = 2000
"""Lines whose cells tell what names in a column look like."""
PLAIN = {"strict": True, "quoting": csv.QUOTE_NONE}
CURE = "put a text with the delimiter or a quotation mark into quotation marks, and double those inside of it"
TOO_LONG = f"has a cell of more than {csv.field_size_limit():,} characters"
CURE_OF_LONG = "shorten its text, or close the quotation mark that opens it"
_SHORT_SUFFIX = re.compile(r"\.[a-z]\w{1,4}")


class Line(NamedTuple):
    """A row of a table; a cell in quotation marks may span several lines of the text."""

    number: int
    """Line of the text on which it begins; 1 is the header's."""
    cells: list[Any]
    """Texts; in JSON whatever it holds, and None for a column that the line lacks."""


class Table(NamedTuple):
    """A table that was read with certainty but for `misfits`."""

    columns: list[str]
    lines: list[Line]
    misfits: list[Line]
    """Few lines with more or fewer cells than there are columns; they are not among `lines`."""


@dataclass
class _Reading:
    """What one way of reading finds."""

    header: list[str]
    lines: list[Line] = field(default_factory=list)
    misfits: list[Line] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    """First and last line of each row that spans several."""
    problem: str = ""
    """Why this way cannot be right; empty if it can."""

    @property
    def is_whole(self) -> bool:
        """Every line was read."""
        return not self.problem and not self.misfits


def header(text: str) -> list[str]:
    """Names of the columns, without quotation marks and blanks around them."""
    first = text.removeprefix("\ufeff").lstrip("\r\n")
    rows = csv.reader(io.StringIO(first, newline=""), delimiter=_delimiter(text), skipinitialspace=True)
    try:
        return _names(next(rows, []))
    except csv.Error:
        return []


def read_table(text: str, name: str) -> Table:
    """The rows of a table, without blank lines.

    Args:
        text: the whole file.
        name: its URI, for messages.

    Raises:
        ValueError: no way of reading is certain; it names lines and the cure.
    """
    text, delimiter = text.removeprefix("\ufeff"), _delimiter(text)
    quoted = [_read(text, delimiter, dialect) for dialect in _quoted(text, delimiter)]
    whole = [reading for reading in quoted if reading.is_whole] or _unquoted(text, delimiter)
    places = {tuple(line.number for line in reading.lines) for reading in whole}
    sound = sorted((reading for reading in quoted if not reading.problem), key=lambda one: len(one.misfits))
    if len(places) > 1:
        raise ValueError(f"{name}: {_double_meaning(places)}; {CURE}")
    found = (whole or sound or quoted)[0]
    if found.problem or len(found.misfits) > MOST_MISFITS * (len(found.lines) + len(found.misfits)):
        cure = CURE_OF_LONG if found.problem.endswith(TOO_LONG) else CURE
        raise ValueError(f"{name}: {_refusal(found, _read(text, delimiter, PLAIN), delimiter)}; {cure}")
    return Table(found.header, found.lines, found.misfits)


def _delimiter(text: str) -> str:
    first = text.removeprefix("\ufeff").lstrip("\r\n").partition("\n")[0]
    return max(DELIMITERS, key=first.count)


def _quoted(text: str, delimiter: str) -> Iterator[dict[str, Any]]:
    """Ways in which quotation marks enclose cells; each further one only where the text has its mark."""
    yield {"strict": True}
    if f'{delimiter} "' in text:
        yield {"strict": True, "skipinitialspace": True}
    if _has_escapes(text, delimiter):
        yield {"strict": True, "escapechar": "\\"}


def _unquoted(text: str, delimiter: str) -> list[_Reading]:
    """The first whole one of two more ways: marks are a part of the text, or text may follow a closing mark."""
    readings = (_read(text, delimiter, dialect) for dialect in (PLAIN, {"strict": False}))
    return [reading for reading in readings if reading.is_whole][:1]


def _has_escapes(text: str, delimiter: str) -> bool:
    """A backslash stands before marks and delimiters, and before nothing else."""
    after = set(re.findall(r"\\([\s\S]?)", text))
    return bool(after & {'"', delimiter}) and after <= {'"', "'", "\\", delimiter}


def _read(text: str, delimiter: str, dialect: dict[str, Any]) -> _Reading:
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, **dialect)
    reading, begins, is_plain = _Reading([]), 1, dialect.get("quoting") == csv.QUOTE_NONE
    try:
        for cells in rows:
            if cells and not reading.header:
                reading.header = _names(cells)
            elif cells:
                reading.lines.append(Line(begins, cells))
                if rows.line_num > begins:
                    reading.spans.append((begins, rows.line_num))
            begins = rows.line_num + 1
    except csv.Error as error:
        is_long = str(error).startswith("field larger than")
        reading.problem = f"line {begins} {TOO_LONG if is_long else f'cannot be read ({error})'}"
        return reading
    _set_misfits_apart(reading, may_end_early=not is_plain)
    reading.problem = _swallowed(reading, text, delimiter)
    if reading.spans and not dialect["strict"]:
        reading.problem = f"the quotation mark in line {reading.spans[0][0]} does not close there"
    return reading


def _names(cells: Sequence[str]) -> list[str]:
    names = [cell.strip() for cell in cells]
    names = [name[1:-1].strip() if len(name) > 1 and name[0] == name[-1] == '"' else name for name in names]
    while names and not names[-1]:
        names.pop()
    return names


def _set_misfits_apart(reading: _Reading, may_end_early: bool) -> None:
    """Lines of another length; cells beyond the columns may be blank, and a line may hold a name alone."""
    columns = len(reading.header)
    other = [line for line in reading.lines if len(line.cells) != columns] if columns > 1 else []
    names = {_shape(line.cells[0]) for line in _sample(reading.lines) if len(line.cells) >= columns} if other else set()
    short = [line for line in other if len(line.cells) < columns and not _is_name_alone(line, names)]
    if may_end_early and len(short) > max(1, SHORT_BY_CUSTOM * len(reading.lines)):
        short = []
    misfits = {line.number for line in short}
    misfits |= {line.number for line in other if any(map(str.strip, line.cells[columns:]))}
    if other:
        reading.misfits = [line for line in reading.lines if line.number in misfits]
        kept = (line for line in reading.lines if line.number not in misfits)
        reading.lines = [Line(line.number, line.cells[:columns]) for line in kept]


def _is_name_alone(line: Line, names: set[str]) -> bool:
    return len(line.cells) == 1 and '"' not in line.cells[0] and _shape(line.cells[0]) in names


def _swallowed(reading: _Reading, text: str, delimiter: str) -> str:
    """A sentence about the first cell that takes in a line like the rows around it; empty if none does."""
    if not reading.spans:
        return ""
    columns = [[cell for cell in column if not re.search("[\r\n]", cell)] for column in _columns(reading)]
    shapes = [set(map(_shape, column)) for column in columns]
    marks = [at for at, seen in enumerate(shapes) if _are_names(seen, len(columns[at]))]
    lines = io.StringIO(text, newline="").readlines()
    for first, last in reading.spans:
        for number in range(first + 1, last + 1):
            cells = lines[number - 1].rstrip("\r\n").split(delimiter)
            fits = marks and len(cells) == len(reading.header)
            if fits and all(_shape(cells[mark]) in shapes[mark] for mark in marks):
                return f"the quotation mark in line {first} opens a cell that takes in line {number}, a row of its own"
    return ""


def _are_names(shapes: set[str], cells: int) -> bool:
    """The cells of a column are names of few shapes, and no sentences."""
    return (
        0 < 2 * len(shapes) <= max(2, cells) and len(shapes) <= 8 and not any(re.search(r"\s", one) for one in shapes)
    )


def _columns(reading: _Reading) -> list[list[str]]:
    """Cells of each column, of a part of the rows where there are many."""
    rows = [line.cells for line in _sample(reading.lines)]
    return [[cells[at] for cells in rows if at < len(cells)] for at in range(len(reading.header))]


def _sample(lines: list[Line]) -> list[Line]:
    return lines[:: 1 + len(lines) // MOST_SAMPLED]


def _shape(cell: str) -> str:
    """What names of one kind have in common: the suffix, else the order of letters, digits and marks."""
    cell = cell.strip().strip('"')
    suffix = os.path.splitext(cell)[1].lower()
    if _SHORT_SUFFIX.fullmatch(suffix):
        return suffix
    return re.sub(r"\d+", "0", re.sub(r"[^\W\d]+", "a", cell))


def _refusal(found: _Reading, plain: _Reading, delimiter: str) -> str:
    if not found.problem:
        return f"{_misfit_words(found)}; the delimiter is {delimiter!r}"
    without = _misfit_words(plain) if plain.misfits else plain.problem
    return f"{found.problem}; without a rule for quotation marks {without}"


def _double_meaning(places: set[tuple[int, ...]]) -> str:
    one, other, *_ = map(set, places)
    return f"line {min(one ^ other)} is a row of its own or a part of the one before, as backslashes are read"


def _misfit_words(reading: _Reading) -> str:
    named = [f"line {line.number} has {len(line.cells)}" for line in reading.misfits[:NAMED_LINES]]
    more = len(reading.misfits) - len(named)
    listed = ", ".join(named) + (f", and {more} more lines" if more else "")
    return f"lines have other numbers of cells than the {len(reading.header)} columns ({listed})"
