"""What the columns of a Parquet file hold, by their types, and which of them is the image."""

from collections.abc import Callable, Sequence
from typing import Any

import pyarrow as pa

from tips_ray.data.sources.columns import IMAGE, check_spelled_once, common_name
from tips_ray.data.sources.image_urls import NAMES
from tips_ray.data.sources.texts import SYNTHETIC, WEB

PICKLED = "ray.data.arrow_pickled_object"
"""Ray Data's type of columns; where Ray Data is imported, pyarrow unpickles each cell that it reads."""
_PATHS = (*IMAGE, "image_path")
"""Columns of texts that are the image even beside a column of bytes with an uncommon name."""
_BEGINNINGS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM", b"II*\0", b"MM\0*")
"""Of JPEG, PNG, GIF, BMP and TIFF."""


def refuse_pickles(schema: pa.Schema, place: str) -> None:
    """Refuse a file with columns, or parts of columns, that are unpickled where Ray Data is imported.

    Args:
        schema: the file's columns, read with or without Ray Data.
        place: the file, for the message.

    Raises:
        ValueError: there is such a column.
    """
    found = next((field.name for field in schema if _is_pickled(field)), None)
    if found is not None:
        raise ValueError(
            f"{place}: the column {found!r} holds pickled Python objects, and reading them would run whatever code "
            "they name; write the file again without that column or leave the file out"
        )


def _is_pickled(field: pa.Field) -> bool:
    """The field or a part of it has Ray's type; without Ray Data the type is only a name in the field's metadata."""
    name = (field.metadata or {}).get(b"ARROW:extension:name", b"").decode("utf-8", "replace")
    kind = field.type
    if isinstance(kind, pa.BaseExtensionType):
        name, kind = kind.extension_name, kind.storage_type
    if pa.types.is_dictionary(kind):
        kind = pa.list_(kind.value_type)  # it has no fields of its own
    return name == PICKLED or any(_is_pickled(kind.field(place)) for place in range(kind.num_fields))


def image_column(schema: pa.Schema, shard: str, first_cells: Callable[[str], Sequence[dict[str, Any]]]) -> str:
    """The first that is there: bytes of a common name, texts named as the image, bytes that are images, texts of files.

    Args:
        schema: the file's columns.
        shard: URI, for messages.
        first_cells: gives the first rows of one column.

    Raises:
        ValueError: there is none, or several hold images and none of them has a common name, or two names differ by
            their case alone.
    """
    texts = {*WEB, *SYNTHETIC}
    holding_bytes = [field.name for field in schema if holds_bytes(field.type) and field.name.lower() not in texts]
    naming = [name for name in schema.names if holds_text(schema, name)]
    found = common_name(IMAGE, holding_bytes) or common_name(_PATHS, naming)
    if found:
        check_spelled_once("image", found, holding_bytes if found in holding_bytes else naming, shard)
        return found
    images = [name for name in holding_bytes if _are_images([row[name] for row in first_cells(name)])]
    found = "" if len(images) > 1 else (*images, common_name(NAMES, naming))[0]
    if not found and len(holding_bytes) > 1:
        several = ", ".join(images or holding_bytes)
        raise ValueError(f"{shard}: several columns hold bytes ({several}); name columns.image")
    if not found:
        there = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise ValueError(
            f"{shard}: no column holds images as bytes, and none with a common name holds paths or URLs; there are "
            f"{there}; name one of them as columns.image of this source"
        )
    return found


def _are_images(cells: Sequence[Any]) -> bool:
    """One of the cells begins like an image, or none of them has bytes."""
    held = [cell.get("bytes") if isinstance(cell, dict) else cell for cell in cells]
    return not any(held) or any(_begins_like_an_image(content) for content in held if content)


def _begins_like_an_image(content: bytes) -> bool:
    is_webp = content[:4] == b"RIFF" and content[8:12] == b"WEBP"
    return is_webp or content[4:8] == b"ftyp" or content.startswith(_BEGINNINGS)  # ftyp: AVIF, HEIC


def holds_bytes(kind: pa.DataType) -> bool:
    """Bytes, or a struct {bytes, path}."""
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        held = kind.field("bytes").type
        kind = pa.binary() if pa.types.is_null(held) else held  # null where every row has a path alone
    return _is_one_of(kind, pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)


def holds_numbers(kind: pa.DataType) -> bool:
    """Numbers, dates or truth values, or lists of them."""
    while pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        kind = kind.value_type
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return pa.types.is_primitive(kind) or pa.types.is_decimal(kind)


def holds_text(schema: pa.Schema, name: str) -> bool:
    """The column of this name holds texts."""
    kind = schema.field(name).type
    return _is_one_of(kind, pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)


def _is_one_of(kind: pa.DataType, *tests: Callable[[pa.DataType], bool]) -> bool:
    """Whether a type, or that of a dictionary's values (pandas: category), passes one of the tests."""
    held = kind.value_type if pa.types.is_dictionary(kind) else kind
    return any(test(held) for test in tests)
