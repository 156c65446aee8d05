"""HTML that is escaped by construction: text becomes markup only through `tag`."""

import base64
import html
import io
from collections.abc import Iterable
from math import isfinite
from typing import Any

import numpy as np
from PIL import Image


class Html(str):
    """Text that is markup already."""


def tag(name: str, /, *children: Any, **attributes: Any) -> Html:
    """An element; children that are not `Html` are escaped. `class_` means class, `_` in names becomes a hyphen.

    An attribute that is None is left out; one that is True has no value.
    """
    given = {key.rstrip("_").replace("_", "-"): value for key, value in attributes.items() if value is not None}
    texts = [f" {key}" if value is True else f' {key}="{html.escape(str(value))}"' for key, value in given.items()]
    return Html(f"<{name}{''.join(texts)}>{joined(children)}</{name}>")


def joined(children: Iterable[Any]) -> Html:
    return Html("".join(child if isinstance(child, Html) else html.escape(str(child)) for child in children))


def picture(image: np.ndarray, side_px: int, alt: str = "", class_: str | None = None) -> Html:
    """An inlined JPEG, at most `side_px` on its longer side."""
    return _inlined(_thumbnail(image, side_px), "JPEG", alt, class_, quality=82)


def pixels(image: np.ndarray, alt: str = "") -> Html:
    """An inlined PNG whose pixels stay sharp when the page enlarges them."""
    return _inlined(Image.fromarray(image), "PNG", alt, "pixels")


def picture_uri(image: np.ndarray, side_px: int) -> str:
    """The URI of `picture`, for a page that shows it in many places."""
    return _encoded(_thumbnail(image, side_px), "JPEG", quality=82)


def data_uri(content: bytes, kind: str) -> str:
    """The encoded image `content` as a URI; `kind` is `png` or `jpeg`."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _thumbnail(image: np.ndarray, side_px: int) -> Image.Image:
    photo = Image.fromarray(image).convert("RGB")
    photo.thumbnail((side_px, side_px))
    return photo


def _encoded(photo: Image.Image, kind: str, **options: Any) -> str:
    buffer = io.BytesIO()
    photo.save(buffer, kind, optimize=True, **options)
    return data_uri(buffer.getvalue(), kind.lower())


def _inlined(photo: Image.Image, kind: str, alt: str, class_: str | None, **options: Any) -> Html:
    source = _encoded(photo, kind, **options)
    element = tag("img", src=source, alt=alt, class_=class_, width=photo.width, height=photo.height)
    return Html(element.removesuffix("</img>"))


def number(value: Any) -> str:
    """A number with four significant digits: `12,346`, `0.1235`, `1.2e-05`; other values as text."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.number)):
        return str(value)
    if isinstance(value, int) or (isfinite(value) and 1000 <= abs(value) < 1e9):
        return f"{value:,.0f}"
    return f"{value:.4g}"
