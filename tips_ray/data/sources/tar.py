"""Headers of a tar, without its payloads: ustar, GNU long names and pax records."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

BLOCK = 512
RECORD = 20 * BLOCK
"""Writers fill the end of a tar with zeros up to a multiple of it."""
MOST_ZEROS = 2 * 2**20
"""Zeros that a writer may leave at the end of a tar; more are a hole, as in a file that was not written whole."""
_REGULAR = (b"0", b"\0", b"7")
_LINKS = {
    b"1": "a hard link to another member; pack the tar again with --hard-dereference",
    b"2": "a symbolic link; pack the tar again with --dereference",
    b"S": "a sparse file; pack the tar again without --sparse",
}
_SPARSE = "GNU.sparse."
"""How pax records of a sparse file begin; its member has another name and begins with a map of its holes."""

ReadRange = Callable[[int, int], bytes]
"""Bytes [start, stop) of the tar; fewer where it ends before."""


class Member(NamedTuple):
    """A file in a tar. `start`..`stop` is all that belongs to it, padding and extended headers included."""

    name: str
    start: int
    payload: int
    size: int
    stop: int
    absent: str = ""
    """Why its bytes are not there: it is a link. Empty for a regular file."""


class BrokenTarError(ValueError):
    """A header that cannot be read; what follows it cannot be found."""


def members(read: ReadRange, start: int, stop: int, is_whole: bool = False) -> Iterator[Member]:
    """Files and links whose headers lie in [start, stop), in order; a payload may reach beyond `stop` where it is cut.

    Tars written one after the other are read as one: between them lie two blocks of zeros, filled up to a record.

    Args:
        read: gives parts of the tar.
        start, stop: where headers are looked for.
        is_whole: the tar ends at `stop`, where a block of zeros should mark its end.

    Raises:
        BrokenTarError: a header is damaged or cut, or a whole tar has no mark at its end, because it was cut or its
            writer was, or zeros that are no such mark; a payload that is cut is left to the caller.
    """
    position, first, extended = start, None, {}
    payload_stop, is_marked = start, True
    zeros = _Zeros(start)
    while position < stop:
        header = read(position, min(position + BLOCK, stop))
        is_marked = not any(header)
        if is_whole:
            zeros.pass_block(position, is_marked)
        if is_marked:
            position += BLOCK
            continue
        kind, size = _checked(header, position)
        first, payload = position if first is None else first, position + BLOCK
        if kind in (b"x", b"L"):
            position = _padded(payload, size)
            try:
                extended |= _extension(kind, read(payload, payload + size))
            except ValueError:
                raise BrokenTarError(f"the extended tar header at byte {payload} is damaged") from None
            continue
        size = int(extended.get("size", size))
        position = _padded(payload, size)
        if kind == b"K" or kind == b"g":
            continue
        payload_stop = payload + size
        kind = b"S" if any(record.startswith(_SPARSE) for record in extended) else kind
        name = extended.get(f"{_SPARSE}name") or extended.get("path") or _name(header)
        if kind in _REGULAR and not name.endswith("/") or kind in _LINKS:
            yield Member(name, first, payload, size, position, _LINKS.get(kind, ""))
        first, extended = None, {}
    if is_whole and not is_marked and payload_stop <= stop:
        raise BrokenTarError(f"the tar ends at byte {stop} without the mark of its end, so it is probably cut")


class _Zeros:
    """The zeros between headers: rows lie in a hole, and none between two tars of one file."""

    def __init__(self, start: int) -> None:
        self.tar, self.first = start, None

    def pass_block(self, position: int, is_zero: bool) -> None:
        """
        Raises:
            BrokenTarError: zeros were no end of a tar.
        """
        if is_zero:
            self.first = position if self.first is None else self.first
            if position - self.first >= MOST_ZEROS:
                raise BrokenTarError(f"there are zeros from byte {self.first} on where rows should be")
        elif self.first is not None:
            end = self.tar - (self.tar - self.first - 2 * BLOCK) // RECORD * RECORD
            if position != end:
                raise BrokenTarError(f"bytes {self.first} to {position} are zeros where rows should be")
            self.tar, self.first = position, None


def _checked(header: bytes, position: int) -> tuple[bytes, int]:
    """Kind and payload size of a checked header."""
    if len(header) < BLOCK:
        raise BrokenTarError(f"the tar ends inside the header at byte {position}")
    try:
        total, size = _number(header[148:156]), _number(header[124:136])
    except ValueError:
        raise BrokenTarError(f"there is no tar header at byte {position}") from None
    if total != sum(header) - sum(header[148:156]) + 8 * 32:
        raise BrokenTarError(f"the tar header at byte {position} is damaged")
    return header[156:157], size


def _number(field: bytes) -> int:
    """Octal text, or binary after a first byte of 0x80 in files above 8 GB."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return _whole(field.split(b"\0", 1)[0].strip() or b"0", 8)


def _padded(payload: int, size: int) -> int:
    return payload + -(-size // BLOCK) * BLOCK


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    prefix = header[345:500].split(b"\0", 1)[0] if header[257:263] == b"ustar\0" else b""
    return (prefix + b"/" + name if prefix else name).decode("utf-8", "backslashreplace")


def _extension(kind: bytes, payload: bytes) -> dict[str, str]:
    """What an extended header says about the member after it: `path`, `size`.

    Raises:
        ValueError: it is damaged; the header's checksum does not cover it.
    """
    if kind == b"L":
        return {"path": payload.split(b"\0", 1)[0].decode("utf-8", "backslashreplace")}
    records = {}
    while payload[:1].isdigit():
        digits, _, _ = payload.partition(b" ")
        length = int(digits)
        if not len(digits) < length <= len(payload):
            raise ValueError(f"a record of {length} bytes")
        name, _, value = payload[len(digits) + 1 : length - 1].partition(b"=")
        records[name.decode("utf-8", "replace")] = value.decode("utf-8", "backslashreplace")
        payload = payload[length:]
    _whole(records.get("size", "0"))
    return records


def _whole(text: str | bytes, base: int = 10) -> int:
    number = int(text, base)
    if number < 0:
        raise ValueError(f"{number} bytes")
    return number
