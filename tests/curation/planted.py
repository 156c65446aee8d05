"""Near-duplicates of a picture, by kind, as they are found on the web."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageOps


def _recompressed(image: Image.Image, quality: int = 30) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(file).convert("RGB")


def _resized(image: Image.Image, share: float = 0.4) -> Image.Image:
    size = (round(image.width * share), round(image.height * share))
    return image.resize(size, Image.Resampling.BILINEAR)


def _cropped(image: Image.Image, share: float) -> Image.Image:
    """Without `share` of the width and height at each side."""
    x, y = round(image.width * share), round(image.height * share)
    return image.crop((x, y, image.width - x, image.height - y))


def _with_bar(image: Image.Image) -> Image.Image:
    """With a black bar over the lowest 15 %."""
    image = image.copy()
    image.paste((0, 0, 0), (0, round(image.height * 0.85), image.width, image.height))
    return image


KINDS: dict[str, Callable[[Image.Image], Image.Image]] = {
    "recompressed": _recompressed,
    "resized": _resized,
    "squashed": lambda image: image.resize((224, 224), Image.Resampling.BICUBIC),
    "grey": lambda image: ImageOps.grayscale(image).convert("RGB"),
    "flipped": ImageOps.mirror,
    "flipped and recompressed": lambda image: _recompressed(ImageOps.mirror(image), 50),
    "bar": _with_bar,
    "crop 5 %": lambda image: _cropped(image, 0.05),
    "crop 10 %": lambda image: _cropped(image, 0.1),
    "crop 20 %": lambda image: _cropped(image, 0.2),
    "border": lambda image: ImageOps.expand(image, round(image.width * 0.08), (255, 255, 255)),
}


def planted(pixels_HW3: np.ndarray, kind: str) -> np.ndarray:
    """A near-duplicate of the picture; its size may differ."""
    return np.asarray(KINDS[kind](Image.fromarray(pixels_HW3)))
