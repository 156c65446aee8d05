"""The captions in one cell, whatever a data set keeps there: text, bytes, lists, dictionaries, or these as text.

A cell that holds no caption for certain raises `NoCaptionError`; its row is then a bad row, and is counted.
"""

import ast
import codecs
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

WEB = ("web_caption", "caption", "captions", "text", "txt", "title", "alt_text", "alt", "org_caption")
WEB += ("original_caption", "caption_web", "description", "comment", "raw", "sentence", "sentences")
SYNTHETIC = ("synthetic_caption", "synthetic_captions", "re_caption", "recaption", "vlm_caption", "caption_synthetic")
SYNTHETIC += ("llm_caption",)
FIELDS = ("raw", *WEB, *SYNTHETIC)
"""Fields of a dictionary that hold its caption, likely ones first; the first with text is taken."""
MOST_SHOWN = 80
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)
_STRING = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_ARRAY = rf"\[\s*(?:{_STRING})(?:\s*,?\s*(?:{_STRING}))*\s*,?\s*\]"
_SET = rf"\{{\s*(?:{_STRING})(?:\s*,\s*(?:{_STRING}))*\s*\}}"
_TUPLE = rf"\(\s*(?:{_STRING})\s*,\s*(?:(?:{_STRING})(?:\s*,\s*(?:{_STRING}))*\s*,?\s*)?\)"
_STRINGS = re.compile(f"{_ARRAY}|{_SET}|{_TUPLE}", re.DOTALL)
QUOTED = re.compile(_STRING, re.DOTALL)
"""A whole text in quotation marks, as JSON and Python write a string."""
_OPENING = re.compile(r"""\[\s*['"{\[]|\{\s*['"]""")
"""How Python and JSON begin a list or a dictionary with something in it."""
_BYTES = re.compile(rf"b(?:{_STRING})", re.DOTALL)


class NoCaptionError(ValueError):
    """A cell that is no caption; the message says what it is and shows it."""


def captions_of(
    rows: Iterable[Mapping[str, Any]], web: str, synthetic: Sequence[str]
) -> tuple[tuple[str, list[str]], str]:
    """Web caption and synthetic captions of one image, and why they cannot be read: empty if they can.

    Args:
        rows: the image's rows by column; a table may have several for one image.
        web: column or field of the web caption; empty: there is none. Where an image has several captions there, the
            first is its web caption, and the others are synthetic ones if `synthetic` is empty.
        synthetic: columns or fields of the synthetic captions.
    """
    rows = list(rows)
    try:
        first, *others = texts([cell(row, web) for row in rows] if web else []) or [""]
        made = texts([cell(row, name) for row in rows for name in synthetic])
    except NoCaptionError as error:
        return ("", []), str(error)
    return (first, made if synthetic else others), ""


def texts(value: Any) -> list[str]:
    """The captions in a cell, stripped, without empty ones and byte order marks.

    An unpaired surrogate (JSON allows it) becomes U+FFFD.

    Raises:
        NoCaptionError: the cell holds a number, bytes that are no UTF-8, or a dictionary with no caption for certain.
    """
    if value is None or value != value:  # NaN is what pandas writes for an empty cell
        return []
    if isinstance(value, bytes):
        return texts(_decoded(value))
    if isinstance(value, (list, tuple)):
        return [text for part in _parts(value) for text in texts(part)]
    if isinstance(value, dict):
        return _of_fields(value)
    if not isinstance(value, str):
        raise NoCaptionError(f"its caption is no text but {type(value).__name__}: {shown(value)}")
    text = value.encode("utf-8", "surrogatepass").decode("utf-8", "replace").removeprefix("\ufeff")
    text = text.replace("\0", " ").strip()  # zeros fill the fixed width that some writers give to texts
    written = _written(text)
    return _of_written(text, written) if written is not None else [text] if text else []


def lone_field(cells: Iterable[Any]) -> str:
    """The field that alone has text in the dictionaries of these cells, the same one in all; empty if none has.

    Empty also where a field is known to be the caption, and where some cells are texts and no dictionaries.

    Raises:
        NoCaptionError: a cell cannot be read.
    """
    held = [inner for value in cells for inner in _dictionaries(value)]
    if any(str(name).lower() in FIELDS for inner in held for name in inner):
        return ""
    names = {name for inner in held for name, value in inner.items() if isinstance(value, str) and value.strip()}
    name = names.pop() if len(names) == 1 else ""
    return name if isinstance(name, str) and not {".", ";"} & {*name} else ""


def is_number(text: str) -> bool:
    """The text is a number, as a program writes it."""
    try:
        float(text)
    except ValueError:
        return False
    return True


def cell(row: Mapping[str, Any], name: str) -> Any:
    """The cell of a column, or of a field inside of its dictionaries: `captions.text`.

    A list of dictionaries gives the list of their fields. None where the row has no such column or field.
    """
    column = column_of(name, row)
    return _inside(row.get(column), name[len(column) + 1 :].split(".")) if column != name else row.get(name)


def column_of(name: str, columns: Iterable[str]) -> str:
    """`captions` for `captions.text`; `name` itself where it is a column or no part of it is one."""
    there, found = set(columns), name
    while found not in there and "." in found:
        found = found.rpartition(".")[0]
    return found if found in there else name


def _inside(value: Any, fields: list[str]) -> Any:
    value = _opened(value)
    if isinstance(value, (list, tuple)):
        return [_inside(part, fields) for part in _parts(value)]
    if not isinstance(value, dict):
        return None
    inner = value.get(fields[0])
    return _inside(inner, fields[1:]) if fields[1:] else inner


def _opened(value: Any) -> Any:
    """The list or dictionary that is written in a text or bytes; any other value as it is."""
    text = _decoded(value) if isinstance(value, bytes) else value
    written = _written(text.strip()) if isinstance(text, str) else None
    return text if written is None else written


def _dictionaries(value: Any) -> list[dict[Any, Any]]:
    """The dictionaries in a cell; a text counts as one whose field has no name."""
    value = _opened(value)
    if isinstance(value, (list, tuple)):
        return [inner for part in _parts(value) for inner in _dictionaries(part)]
    return [value] if isinstance(value, dict) else [{"": value}] if isinstance(value, str) else []


def _parts(value: list[Any] | tuple[Any, ...]) -> Iterable[Any]:
    """Entries of a list; pairs are what Arrow makes of a map, and count as a dictionary in a list."""
    is_map = bool(value) and all(isinstance(part, tuple) and len(part) == 2 for part in value)
    return [dict(value)] if is_map else value


def _of_fields(value: dict[Any, Any]) -> list[str]:
    """Captions of the first known field with text; none where the known ones are empty, whatever lies beside them."""
    held = {str(name).lower(): inner for name, inner in reversed(value.items()) if inner not in (None, "")}
    if any(str(name).lower() in FIELDS for name in value):
        return next(filter(None, (texts(held[field]) for field in FIELDS if field in held)), [])
    if all(inner in (None, "", []) for inner in value.values()):
        return []
    fields = "several fields, and none is" if len(value) > 1 else "one field, which is not"
    raise NoCaptionError(f"its caption has {fields} known to be it: {shown(value)}")


def decoded(content: bytes) -> str:
    """UTF-8 text without a byte order mark at its beginning and zeros at its end.

    Raises:
        ValueError: it is no UTF-8, or there are zeros in it, as in UTF-16.
    """
    text = "" if content.startswith(_UTF16_MARKS) else content.decode("utf-8-sig").rstrip("\0")
    if "\0" in text or content.startswith(_UTF16_MARKS):
        raise ValueError("it seems to be UTF-16; write it again as UTF-8")
    return text


def _decoded(value: bytes) -> str:
    try:
        return decoded(value)
    except UnicodeDecodeError as error:
        raise NoCaptionError(f"its caption is bytes, and byte {error.start} is no UTF-8: {shown(value)}") from None
    except ValueError as error:
        raise NoCaptionError(f"its caption is bytes, and {error}: {shown(value)}") from None


def _written(text: str) -> Any:
    """The list, dictionary or bytes that a text is in JSON or Python; None for any other text."""
    if text[:1] == "b" and text.isascii() and _BYTES.fullmatch(text):
        return ast.literal_eval(text)
    if text[:1] == text[-1:] == '"':
        return _written_twice(text)
    if text[:1] + text[-1:] not in ("[]", "{}", "()"):
        return None
    for read in (json.loads, _strings, ast.literal_eval):
        try:
            value = read(text)
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
            continue
        value = sorted(value, key=repr) if isinstance(value, set) else value  # its own order differs by process
        return value if isinstance(value, (list, tuple, dict)) else None
    if _OPENING.match(text):
        raise NoCaptionError(f"its caption looks like a list or dictionary, and cannot be read as one: {shown(text)}")
    return None


def _written_twice(text: str) -> Any:
    """The list or dictionary whose JSON was written as a string of JSON; None for any other text."""
    try:
        inner = json.loads(text)
    except ValueError:
        return None
    return _written(inner.strip()) if isinstance(inner, str) else None


def _strings(text: str) -> list[str]:
    """A list, tuple or set of texts as Python or numpy print it; numpy puts no commas, Python would join its texts."""
    if not _STRINGS.fullmatch(text):
        raise ValueError
    return [ast.literal_eval(found) for found in re.findall(_STRING, text, re.DOTALL)]


def _of_written(text: str, value: Any) -> list[str]:
    """The captions in a list or dictionary that was written as text; numbers in brackets stay a text."""
    if isinstance(value, (list, tuple)) and value and all(isinstance(part, (int, float)) for part in value):
        return [text]
    return texts(value)


def shown(value: Any) -> str:
    """The beginning of a value, for messages."""
    whole = repr(value)
    return whole if len(whole) <= MOST_SHOWN else whole[:MOST_SHOWN] + "..."
