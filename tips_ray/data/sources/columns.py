"""Which column holds what: the config's names first, then the first common name that the data have, in any case."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from tips_ray.config import ColumnsConfig

IMAGE = ("image", "jpg", "jpeg", "png", "webp", "img", "bytes", "image_bytes", "content")
WEB = ("web_caption", "caption", "captions", "text", "txt", "title", "alt_text", "alt", "org_caption")
WEB += ("original_caption", "caption_web", "description")
SYNTHETIC = ("synthetic_caption", "synthetic_captions", "re_caption", "recaption", "vlm_caption", "caption_synthetic")
SYNTHETIC += ("llm_caption",)
KEY = ("key", "__key__", "uid", "id", "file_name", "filename", "image_id", "url")


class Columns(NamedTuple):
    """The columns of `ColumnsConfig`, resolved once the data are known."""

    image: str
    """Column of the image. In a tar `jpg;png`: the first of these members that a row has."""
    web_caption: str
    """Column of the web caption; empty where none is wanted."""
    synthetic_captions: tuple[str, ...]
    """Columns of the synthetic captions; empty where the data have none."""
    key: str
    """Column of the key; empty where rows are named by their place."""


def resolve(wanted: ColumnsConfig, names: Sequence[str], shard: str, images: Sequence[str] = IMAGE) -> Columns:
    """`wanted`, with every None replaced by the first common name among `names`.

    Args:
        wanted: the names that the config gives.
        names: columns that the shard has.
        shard: URI, for the message.
        images: columns that may hold the image.

    Raises:
        ValueError: a named column is absent, or none is found for image or web caption; it lists those there are.
    """
    image = wanted.image or _detected("image", images, names, shard)
    web = wanted.web_caption
    if web is None:
        web = _detected("web_caption", WEB, names, shard)
    others = [name for name in names if name not in (image, web)]
    synthetic = wanted.synthetic_captions
    if synthetic is None:
        synthetic = tuple(filter(None, [common_name(SYNTHETIC, others)]))
    key = wanted.key or common_name(KEY, others)
    resolved = Columns(image, web, synthetic, key)
    check(resolved, names, shard)
    return resolved


def check(columns: Columns, names: Iterable[str], shard: str) -> None:
    """Check that every column is in the shard; of an image column `jpg;png` one alternative is enough.

    Raises:
        ValueError: one is not; it names the column, the shard and the columns there are.
    """
    there = set(names)
    named = [("image", columns.image), ("web_caption", columns.web_caption), ("key", columns.key)]
    named += [("synthetic_captions", name) for name in columns.synthetic_captions]
    for field, name in named:
        if name and not there.intersection(alternatives(name) if field == "image" else (name,)):
            raise ValueError(f"{shard}: columns.{field} is {name!r}, which is not there; there are {_listed(there)}")


def common_name(candidates: Sequence[str], names: Sequence[str]) -> str:
    """The first candidate that the data have, spelled as there, in any case; empty where they have none."""
    spelled = {name.lower(): name for name in reversed(names)}
    return next((spelled[candidate] for candidate in candidates if candidate in spelled), "")


def alternatives(image: str) -> list[str]:
    """`jpg;png` -> [jpg, png]."""
    return image.split(";")


def captions(web: Any, synthetic: Iterable[Any]) -> tuple[str, list[str]]:
    """Web caption and synthetic captions of a row, stripped, without empty ones.

    A list in the web column is one web caption and, where there are no synthetic columns, synthetic ones after it.
    """
    first, *others = texts(web) or [""]
    columns = list(synthetic)
    return first, [text for value in columns for text in texts(value)] if columns else others


def texts(value: Any) -> list[str]:
    """The captions in a cell: none, one, or a list of them; an unpaired surrogate (JSON allows it) becomes U+FFFD."""
    if value is None or value != value:  # NaN is what pandas writes for an empty cell
        return []
    if isinstance(value, (list, tuple)):
        return [text for part in value for text in texts(part)]
    text = str(value).encode("utf-8", "surrogatepass").decode("utf-8", "replace").strip()
    return [text] if text else []


def _detected(field: str, candidates: Sequence[str], names: Sequence[str], shard: str) -> str:
    found = common_name(candidates, names)
    if not found:
        raise ValueError(
            f"{shard}: no column has a common name for columns.{field} ({', '.join(candidates)}); there are "
            f"{_listed(names)}; name one of them as columns.{field} of this source"
        )
    return found


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names)) or "none"
