"""A row in several files of one key, in a tar or in a folder: the files and the fields of its JSON are columns."""

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from tips_ray.config import ColumnsConfig
from tips_ray.data.sources.columns import Columns, alternatives, check_cells, resolve, with_fields
from tips_ray.data.sources.shard import Content
from tips_ray.data.sources.texts import NoCaptionError, captions_of, cell, column_of, decoded, texts
from tips_ray.storage import StorageError

TEXT_MEMBER = "txt"
JSON_SAMPLES = 16
"""Rows at the head of a shard whose JSON is read for its field names."""
Reader = Callable[[], bytes]
"""Gives the bytes of a member."""


def member_columns(
    wanted: ColumnsConfig, names: Collection[str], shard: str, images: Sequence[str], cells: Sequence[dict[str, Any]]
) -> Columns:
    """Resolved columns; the key is the name's, the image any of the members `images`, the caption the JSON's or .txt.

    Args:
        wanted: the names that the config gives.
        names: members and JSON fields of the shard.
        shard: URI, for the message.
        images: members that may hold the image.
        cells: `json_cells` of the first rows.

    Raises:
        ValueError: a named column is absent, none is found for image or web caption, or no cell holds a caption.
    """
    if wanted.image is None and set(images) & set(names):
        wanted = wanted.model_copy(update={"image": ";".join(images)})
    wanted = wanted.model_copy(update={"key": wanted.key or "__key__"})
    columns = with_fields(resolve(wanted, sorted(names), shard, images, _numbers(cells)), cells)
    if wanted.web_caption is None and TEXT_MEMBER in names and columns.web_caption != TEXT_MEMBER:
        return columns._replace(web_caption=f"{columns.web_caption};{TEXT_MEMBER}")  # the JSON's may be null
    check_cells(columns, cells, shard)
    return columns


def row_content(key: str, members: Mapping[str, Reader], columns: Columns, fault: str) -> Content:
    """A row from its members; `fault` is what is known to be wrong with it."""
    image = next((members[name] for name in alternatives(columns.image) if name in members), None)
    fields, web = {}, ""
    try:
        fields, web = _fields(members, columns)
    except StorageError:
        raise
    except ValueError as error:
        fault = fault or f"its text cannot be read: {error}"
    captions, unread = captions_of([fields], web, columns.synthetic_captions)
    fault, named = fault or unread, str(fields.get(columns.key) or key)
    return Content(named, image() if image and not fault else b"", captions, fault)


def _fields(members: Mapping[str, Reader], columns: Columns) -> tuple[dict[str, Any], str]:
    """Cells of the row's wanted columns, and which of them is its web caption."""
    web, *others = alternatives(columns.web_caption)
    wanted = {web, columns.key, *columns.synthetic_captions} - {"__key__", ""}
    held = {column_of(name, members) for name in wanted} & members.keys()
    fields = json_fields(members) if len(held) < len(wanted) else {}
    fields |= {name: decoded(members[name]()) for name in held}
    other = next((name for name in others if name in members), "")
    if other and not _has_text(cell(fields, web)):  # a member beside it is read, and may be a fault, only if needed
        return fields | {other: decoded(members[other]())}, other
    return fields, web


def _has_text(held: Any) -> bool:
    try:
        return bool(texts(held))
    except NoCaptionError:
        return False


def json_cells(members: Mapping[str, Reader]) -> dict[str, Any]:
    """The JSON fields of a row that no member stands for; none where the row cannot be read, which is told there."""
    try:
        fields = json_fields(members)
    except StorageError:
        raise
    except ValueError:
        return {}
    return {name: value for name, value in fields.items() if name not in members}


def _numbers(cells: Sequence[dict[str, Any]]) -> set[str]:
    """Fields that hold numbers or truth values wherever they hold something."""
    held = [(name, value) for fields in cells for name, value in fields.items() if value is not None]
    return {name for name, _ in held} - {name for name, value in held if not isinstance(value, (int, float))}


def json_fields(members: Mapping[str, Reader]) -> dict[str, Any]:
    """Fields of the member `json`; none where there is none or it holds no object.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        fields = json.loads(members["json"]()) if "json" in members else {}
    except RecursionError:
        raise ValueError("the JSON is nested too deeply") from None
    return fields if isinstance(fields, dict) else {}
