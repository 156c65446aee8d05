"""Which column holds what: the config's names first, then the first common name that the data have, in any case."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from tips_ray.config import ColumnsConfig
from tips_ray.data.sources.texts import SYNTHETIC, WEB, NoCaptionError, cell, column_of, lone_field, shown, texts
from tips_ray.errors import listed

IMAGE = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes", "content")
KEY = ("key", "__key__", "uid", "id", "file_name", "filename", "image_id", "url")


class Columns(NamedTuple):
    """The columns of `ColumnsConfig`, resolved once the data are known."""

    image: str
    """Column of the image. In a tar `jpg;png`: the first of these members that a row has."""
    web_caption: str
    """Column of the web caption, or a field in it (`captions.text`); empty where none is wanted. Members of one row may
    stand in for each other: `caption;txt` is the first of these with text."""
    synthetic_captions: tuple[str, ...]
    """Columns of the synthetic captions; empty where the data have none."""
    key: str
    """Column of the key; empty where rows are named by their place."""

    @property
    def of_captions(self) -> list[str]:
        """The columns or fields of captions, the web caption's first."""
        return [name for name in (*alternatives(self.web_caption), *self.synthetic_captions) if name]


def resolve(
    wanted: ColumnsConfig,
    names: Sequence[str],
    shard: str,
    images: Sequence[str] = IMAGE,
    numbers: Collection[str] = (),
) -> Columns:
    """`wanted`, with every None replaced by the first common name among `names`.

    Args:
        wanted: the names that the config gives.
        names: columns that the shard has.
        shard: URI, for the message.
        images: columns that may hold the image.
        numbers: columns that hold numbers, dates or truth values, and so no captions.

    Raises:
        ValueError: a named column is absent or holds numbers, or none is found for image or web caption; it lists
            those there are. Or one is found in two cases.
    """
    image = wanted.image or _detected("image", images, names, shard)
    web = wanted.web_caption
    if web is None:
        web = _detected("web_caption", WEB, names, shard, numbers)
    others = [name for name in names if name not in (image, web)]
    synthetic = wanted.synthetic_captions
    if synthetic is None:
        synthetic = tuple(filter(None, [common_name(SYNTHETIC, [name for name in others if name not in numbers])]))
    key = wanted.key or common_name(KEY, others)
    resolved = Columns(image, web, synthetic, key)
    _check_spellings(resolved, wanted, names, numbers, shard)
    check(resolved, names, shard)
    _check_no_numbers(resolved, numbers, shard)
    return resolved


def check(columns: Columns, names: Iterable[str], shard: str) -> None:
    """Check that every column is in the shard; of `jpg;png` or `caption;txt` one alternative is enough.

    Raises:
        ValueError: one is not; it names the column, the shard and the columns there are.
    """
    there = set(names)
    named = [("image", columns.image), ("web_caption", columns.web_caption), ("key", columns.key)]
    named += [("synthetic_captions", name) for name in columns.synthetic_captions]
    for field, name in named:
        places = alternatives(name) if field in ("image", "web_caption") else [name]
        places = [column_of(place, there) for place in places] if "caption" in field else places
        if name and not there.intersection(places):
            raise ValueError(f"{shard}: columns.{field} is {name!r}, which is not there; there are {_listed(there)}")


def common_name(candidates: Sequence[str], names: Sequence[str]) -> str:
    """The first candidate that the data have, spelled as there, in any case; empty where they have none."""
    spelled = {name.lower(): name for name in reversed(names)}
    return next((spelled[candidate] for candidate in candidates if candidate in spelled), "")


def _check_spellings(
    found: Columns, wanted: ColumnsConfig, names: Sequence[str], numbers: Collection[str], shard: str
) -> None:
    texts = [name for name in names if name not in numbers]
    if wanted.image is None:
        check_spelled_once("image", found.image, names, shard)
    if wanted.web_caption is None:
        check_spelled_once("web_caption", found.web_caption, texts, shard)
    for name in found.synthetic_captions if wanted.synthetic_captions is None else ():
        check_spelled_once("synthetic_captions", name, texts, shard)


def check_spelled_once(field: str, found: str, names: Iterable[str], shard: str) -> None:
    """Check that a name that was found for `columns.<field>` is not there in another case too.

    Raises:
        ValueError: it is; it names all spellings.
    """
    spelled = [name for name in dict.fromkeys(names) if name.lower() == found.lower()]
    if len(spelled) > 1:
        raise ValueError(
            f"{shard}: the columns {' and '.join(spelled)} differ by their case alone; name the one that is meant as "
            f"columns.{field} of this source, or give the other another name"
        )


def alternatives(columns: str) -> list[str]:
    """`jpg;png` -> [jpg, png]."""
    return columns.split(";")


def with_fields(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> Columns:
    """`columns`, with the field added (`captions.value`) where the first rows hold dictionaries with one text each.

    It must be the same field in all of them, and no common name among their fields, which is found row by row.
    """
    web = ";".join(_with_field(name, rows) for name in alternatives(columns.web_caption))
    return columns._replace(
        web_caption=web, synthetic_captions=tuple(_with_field(name, rows) for name in columns.synthetic_captions)
    )


def _with_field(name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    try:
        field = lone_field(cell(row, name) for row in rows)
    except NoCaptionError:  # `check_cells` and the row tell it
        return name
    return f"{name}.{field}" if field else name


def check_cells(columns: Columns, rows: Sequence[Mapping[str, Any]], shard: str) -> None:
    """Check that the first rows of a source hold captions where `columns` says.

    Raises:
        ValueError: every cell of a column is something else, or has no such field; it shows one and says what to do.
    """
    there = {name for row in rows for name in row}
    for name in columns.of_captions:
        column = column_of(name, there)
        held = [row for row in rows if row.get(column) not in (None, "", [])]
        faults = [fault for fault in (_cell_fault(row, name) for row in held) if fault]
        if held and len(faults) == len(held):
            raise ValueError(
                f"{shard}: no caption can be read from the column {column}; of the first row: {faults[0]}; name "
                f"a field where it has some (columns.web_caption: {column}.FIELD), or another column"
            )


def _cell_fault(row: Mapping[str, Any], name: str) -> str:
    """Why a cell cannot be read as captions; empty if it can."""
    try:
        found = cell(row, name)
        texts(found)
    except NoCaptionError as error:
        return str(error)
    column = column_of(name, row)
    is_lost = column != name and _is_nothing(found)
    return f"there is no field {name[len(column) + 1 :]} in {shown(row.get(column))}" if is_lost else ""


def _is_nothing(found: Any) -> bool:
    return all(map(_is_nothing, found)) if isinstance(found, list) else found is None


def _check_no_numbers(columns: Columns, numbers: Collection[str], shard: str) -> None:
    for name in columns.of_captions:
        if name in numbers:
            raise ValueError(f"{shard}: the column {name} holds numbers and no captions; name a column of texts")


def _detected(
    field: str, candidates: Sequence[str], names: Sequence[str], shard: str, numbers: Collection[str] = ()
) -> str:
    found = common_name(candidates, [name for name in names if name not in numbers])
    if not found:
        common = common_name(candidates, sorted(numbers))
        passed = f" ({common} holds numbers, which are no captions)" if common else ""
        raise ValueError(
            f"{shard}: no column has a common name for columns.{field} ({', '.join(candidates)}); there are "
            f"{_listed(names)}{passed}; name one of them as columns.{field} of this source"
        )
    return found


def _listed(names: Iterable[str]) -> str:
    return listed(sorted(names)) or "none"
