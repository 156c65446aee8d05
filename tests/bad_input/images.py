"""Image files as they are met in the wild, each with the right answer: what it shows, or why it is refused.

The picture is red, green, blue and yellow quadrants, or one colour; `corners` are the colours a viewer shows top
left, top right, bottom left, bottom right.
"""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, PngImagePlugin

Color = tuple[int, int, int]
RED, GREEN, BLUE, YELLOW = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0)
WHITE, GRAY = (255, 255, 255), (128, 128, 128)
QUADRANTS = (RED, GREEN, BLUE, YELLOW)
HEIGHT, WIDTH = 64, 96
MAX_BYTES, MAX_PIXELS = 2**20, 64_000_000
_JPEG_ERROR = 6
_CUT = "truncated: the data end early"
_TOO_LARGE = "too large: {0}x{1} = {2:,} pixels, max_image_pixels is 64,000,000"


class Case(NamedTuple):
    """One file and its outcome: `corners` when it is fine, else the start of the refusal's text."""

    name: str
    make: Callable[[], bytes]
    corners: tuple[Color, ...] | None = None
    refused: str | None = None
    size: tuple[int, int] = (HEIGHT, WIDTH)
    tolerance: int = 0


def quadrants() -> np.ndarray:
    """The picture as a viewer shows it, [H, W, 3]."""
    corners = np.array(QUADRANTS, np.uint8).reshape(2, 2, 3)
    return corners.repeat(HEIGHT // 2, axis=0).repeat(WIDTH // 2, axis=1)


def encoded(pixels: np.ndarray | Image.Image, form: str, **options: Any) -> bytes:
    """The file's bytes in the format Pillow calls `form`."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def jpeg(**options: Any) -> bytes:
    """The quadrants at high quality."""
    return encoded(quadrants(), "JPEG", quality=95, subsampling=0, **options)


def noise_jpeg(**options: Any) -> bytes:
    """So many bytes of pixels that half of the file is half of the picture."""
    return encoded(np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8), "JPEG", **options)


def solid(mode: str, color: Any, form: str = "PNG", **options: Any) -> bytes:
    """One colour in one of Pillow's modes."""
    return encoded(Image.new(mode, (WIDTH, HEIGHT), color), form, **options)


def png(width: int, height: int, bits: int, color_type: int, data: bytes) -> bytes:
    """A PNG by hand; `data` is what is compressed: rows, each behind a filter byte."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(data)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def stored_for(orientation: int) -> np.ndarray:
    """The quadrants as a camera stores them under an EXIF orientation.

    Source: EXIF 2.3, tag 0x0112: where the stored row 0 and the stored column 0 are on the visible picture.
    """
    visible = quadrants()
    turned = visible.swapaxes(0, 1)
    return {
        1: visible,  # row 0 is the top, column 0 the left side
        2: visible[:, ::-1],  # top, right
        3: visible[::-1, ::-1],  # bottom, right
        4: visible[::-1],  # bottom, left
        5: turned,  # left, top
        6: turned[::-1],  # right, top
        7: turned[::-1, ::-1],  # right, bottom
        8: turned[:, ::-1],  # left, bottom
    }[orientation]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _exif(orientation: int, order: str = ">") -> bytes:
    """EXIF by hand: header, offset of the directory, one entry (tag, short, one value), no further directory."""
    header = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}I", 8)
    return b"Exif\0\0" + header + struct.pack(f"{order}HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def _rotated(orientation: int, form: str = "JPEG", order: str = ">", **options: Any) -> bytes:
    pixels = np.ascontiguousarray(stored_for(orientation if orientation <= 8 else 1))
    return encoded(pixels, form, exif=_exif(orientation, order), **options)


def _half_jpeg(end: bytes, **options: Any) -> bytes:
    data = noise_jpeg(quality=95, **options)
    return data[: len(data) // 2] + end


def _before_end(content: bytes) -> bytes:
    return jpeg()[:-2] + content + b"\xff\xd9"


def _rotated_jpeg(orientation: int) -> bytes:
    return _rotated(orientation, quality=95, subsampling=0)


def _half_transparent_palette() -> bytes:
    image = Image.new("P", (WIDTH, HEIGHT), 0)
    image.putpalette([*RED, *BLUE])
    image.paste(1, (WIDTH // 2, 0, WIDTH, HEIGHT))
    return encoded(image, "PNG", transparency=1)


def _animated(form: str, **options: Any) -> bytes:
    frames = [Image.new("RGB", (WIDTH, HEIGHT), color) for color in (RED, BLUE)]
    return encoded(frames[0], form, save_all=True, append_images=frames[1:], duration=100, **options)


def _huge_jpeg() -> bytes:
    data = jpeg()
    sides = data.index(b"\xff\xc0") + 5
    return data[:sides] + b"\xff\xff\xff\xff" + data[sides + 4 :]


def _huge_webp() -> bytes:
    """VP8L keeps both sides, less one, in the 28 bits after its signature byte."""
    data = bytearray(encoded(quadrants(), "WEBP", lossless=True))
    sides = data.index(b"VP8L") + 9
    data[sides : sides + 4] = struct.pack("<I", struct.unpack_from("<I", data, sides)[0] | 0x0FFFFFFF)
    return bytes(data)


def _huge_gif() -> bytes:
    data = solid("P", 0, "GIF")
    return data[:6] + b"\xff\xff\xff\xff" + data[10:]


def _text_bomb() -> bytes:
    text = PngImagePlugin.PngInfo()
    text.add_text("comment", "a" * 4_000_000, zip=True)
    return encoded(quadrants(), "PNG", pnginfo=text)


def _rows16(values: tuple[int, ...]) -> bytes:
    return (b"\0" + struct.pack(f">{len(values)}H", *values) * WIDTH) * HEIGHT


def _solid(color: Color) -> tuple[Color, ...]:
    return color, color, color, color


CATALOGUE = (
    Case("jpeg", jpeg, QUADRANTS, tolerance=_JPEG_ERROR),
    Case("progressive jpeg", lambda: jpeg(progressive=True), QUADRANTS, tolerance=_JPEG_ERROR),
    Case("jpeg with trailing garbage", lambda: jpeg() + b"\0garbage" * 99, QUADRANTS, tolerance=_JPEG_ERROR),
    Case("jpeg with bytes before its end", lambda: _before_end(b"garbage" * 99), QUADRANTS, tolerance=_JPEG_ERROR),
    Case("jpeg with zeros before its end", lambda: _before_end(bytes(9999)), QUADRANTS, tolerance=_JPEG_ERROR),
    Case("jpeg with zeros as its end", lambda: jpeg()[:-2] + bytes(9999), QUADRANTS, tolerance=_JPEG_ERROR),
    Case("jpeg with zeros after its end", lambda: jpeg() + bytes(9999), QUADRANTS, tolerance=_JPEG_ERROR),
    Case("png with the name of a jpeg", lambda: encoded(quadrants(), "PNG"), QUADRANTS),
    Case("webp", lambda: encoded(quadrants(), "WEBP", lossless=True), QUADRANTS),
    Case("bmp", lambda: encoded(quadrants(), "BMP"), QUADRANTS),
    Case("cmyk jpeg", lambda: solid("CMYK", (0, 255, 255, 0), "JPEG"), _solid(RED), tolerance=_JPEG_ERROR),
    Case("gray jpeg", lambda: solid("L", 128, "JPEG"), _solid(GRAY), tolerance=_JPEG_ERROR),
    Case("gray png", lambda: solid("L", 128), _solid(GRAY)),
    Case("black and white png", lambda: solid("1", 1), _solid(WHITE)),
    Case("16-bit png", lambda: png(WIDTH, HEIGHT, 16, 2, _rows16((65535, 0, 32896))), _solid((255, 0, 128))),
    Case("16-bit gray png", lambda: png(WIDTH, HEIGHT, 16, 0, _rows16((1000,))), _solid((4, 4, 4))),  # 1000 / 257
    Case("rgba png, half red", lambda: solid("RGBA", (255, 0, 0, 128)), _solid((255, 127, 127)), tolerance=1),
    Case("rgba png, fully transparent", lambda: solid("RGBA", (255, 0, 0, 0)), _solid(WHITE)),
    Case("gray png with alpha", lambda: solid("LA", (0, 128)), _solid((127, 127, 127)), tolerance=1),
    Case("rgb png with a transparent colour", lambda: solid("RGB", RED, transparency=RED), _solid(WHITE)),
    Case("palette png, one half transparent", _half_transparent_palette, (RED, WHITE, RED, WHITE)),
    Case("rgba webp", lambda: solid("RGBA", (0, 0, 255, 0), "WEBP", lossless=True), _solid(WHITE)),
    Case("animated gif", lambda: _animated("GIF"), _solid(RED)),
    Case("animated webp", lambda: _animated("WEBP", lossless=True), _solid(RED)),
    *(
        Case(
            f"exif orientation {number}", lambda number=number: _rotated_jpeg(number), QUADRANTS, tolerance=_JPEG_ERROR
        )
        for number in range(1, 9)
    ),
    Case("exif orientation of a png", lambda: _rotated(6, "PNG", order="<"), QUADRANTS),
    Case("exif orientation of a webp", lambda: _rotated(8, "WEBP", lossless=True), QUADRANTS),
    Case("exif orientation that does not exist", lambda: _rotated(9, "PNG"), QUADRANTS),
    Case("exif of noise", lambda: jpeg(exif=b"Exif\0\0II*\0" + b"\xff" * 40), QUADRANTS, tolerance=_JPEG_ERROR),
    Case("one pixel", lambda: encoded(quadrants()[:1, :1].copy(), "PNG"), _solid(RED), size=(1, 1)),
    Case("very wide", lambda: encoded(np.full((1, 9000, 3), 255, np.uint8), "PNG"), _solid(WHITE), size=(1, 9000)),
    Case("very tall", lambda: encoded(np.full((9000, 2, 3), 255, np.uint8), "JPEG"), _solid(WHITE), size=(9000, 2)),
    Case("zero bytes", lambda: b"", refused="zero bytes"),
    Case("text", lambda: b"a dog on a beach\n", refused="not an image: starts with b'a dog on a b'"),
    Case("html", lambda: b"<!DOCTYPE html><html>404</html>", refused="not an image"),
    Case("svg", lambda: b'<svg xmlns="http://www.w3.org/2000/svg"/>', refused="not an image"),
    Case("wav", lambda: b"RIFF\x24\0\0\0WAVEfmt " + bytes(24), refused="not an image"),
    Case("tiff", lambda: encoded(quadrants(), "TIFF"), refused="not an image"),
    Case("magic only", lambda: b"\xff\xd8\xff", refused="corrupt"),
    Case("truncated jpeg", lambda: noise_jpeg()[: len(noise_jpeg()) // 2], refused="truncated"),
    Case("half of a jpeg, ended", lambda: _half_jpeg(b"\xff\xd9"), refused=_CUT),
    Case("half of a jpeg in a file of its length", lambda: _half_jpeg(bytes(9999)), refused=_CUT),
    Case("half of a jpeg in such a file, ended", lambda: _half_jpeg(bytes(9999) + b"\xff\xd9"), refused=_CUT),
    Case("half of a progressive jpeg", lambda: _half_jpeg(b"\xff\xd9", progressive=True), refused=_CUT),
    Case("half of a turned jpeg", lambda: _half_jpeg(b"\xff\xd9", exif=_exif(6)), refused=_CUT),
    Case("truncated png", lambda: encoded(quadrants(), "PNG")[:-40], refused="truncated"),
    Case("truncated gif", lambda: solid("P", 0, "GIF")[:-20], refused="truncated"),
    Case("truncated webp", lambda: encoded(quadrants(), "WEBP")[:-20], refused="corrupt"),
    Case("truncated bmp", lambda: encoded(quadrants(), "BMP")[:-99], refused="truncated"),
    Case("png of noise", lambda: encoded(quadrants(), "PNG")[:45] + b"\xff" * 999, refused="corrupt"),
    Case("png whose text explodes", _text_bomb, refused="corrupt"),
    Case("png bomb", lambda: png(50000, 50000, 8, 2, b""), refused=_TOO_LARGE.format(50000, 50000, 50000**2)),
    Case("jpeg bomb", _huge_jpeg, refused=_TOO_LARGE.format(65535, 65535, 65535**2)),
    Case("webp bomb", _huge_webp, refused="too large: Image size (268435456 pixels)"),
    Case("gif bomb", _huge_gif, refused=_TOO_LARGE.format(65535, 65535, 65535**2)),
    Case("long file", lambda: jpeg() + bytes(MAX_BYTES), refused="too large: 1,0"),
)
