"""Encoded image -> upright 8-bit RGB, or the reason why not. H, W: height and width as a viewer shows the image.

JPEG, PNG, WebP, GIF and BMP, recognised by their first bytes and not by a file name. Of an animation the first frame
is used, transparency becomes white, 16 bits become 8, CMYK becomes RGB, EXIF orientation is applied, colour profiles
are not. TIFF and other formats are refused: they are rare on the web, and every decoder can be attacked. A JPEG whose
data end before its last row is truncated, also where an end mark or zeros follow. Other damage that still decodes to
pixels is not found: neither JPEG nor Pillow's reading of PNG has a checksum over them.

Pillow reads every header and decodes everything but whole JPEG files, of which simplejpeg (libjpeg-turbo, as in Pillow)
makes the same pixels in half of the time. What simplejpeg warns of is looked at once more, then left to Pillow.
"""

import io
import struct
import warnings
from dataclasses import dataclass

import numpy as np
import simplejpeg
from PIL import Image, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

# Opened by their class and not by Image.open, which has a pixel limit of its own, global to the process.
_FORMATS: tuple[tuple[bytes, type[ImageFile.ImageFile]], ...] = (
    (b"\xff\xd8\xff", JpegImageFile),
    (b"\x89PNG\r\n\x1a\n", PngImageFile),
    (b"RIFF", WebPImageFile),
    (b"GIF8", GifImageFile),
    (b"BM", BmpImageFile),
)
# What Pillow raises on damaged data; nothing else is caught.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, struct.error)
_JPEG_END = b"\xff\xd9"
_ENDS_EARLY = "premature end of data segment"
"""libjpeg's warning that a scan ends before its last block; it makes the blocks after it gray."""
_GRAY = 128
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(ValueError):
    """An image that cannot be used. `reason` is one of few (zero bytes, not an image, truncated, corrupt, too large),
    to be counted; `detail` is for the person who looks at this one."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class OpenedImage:
    """An image whose header is read and accepted and whose pixels are not decoded yet."""

    content: bytes
    file: ImageFile.ImageFile
    height: int
    width: int
    orientation: int
    """EXIF: 1 is upright."""

    def pixels(self, reduction: int = 1) -> np.ndarray:
        """Uint8 [H, W, 3], read-only; call once.

        Args:
            reduction: 1, 2, 4 or 8. A JPEG is decoded at this fraction of its sides (rounded up), which averages
                pixels in the frequency domain and saves time; other formats ignore it.

        Raises:
            BadImage: truncated or corrupt.
        """
        pixels = self._of_jpeg(reduction)
        if pixels is not None:
            pixels.setflags(write=False)
            return pixels
        try:
            if reduction > 1:
                self.file.draft(None, (self.file.width // reduction, self.file.height // reduction))
            image = _rgb(self.file)
        except _DAMAGED as error:
            raise _damage(error) from error
        return np.asarray(self._turned(image))

    def _of_jpeg(self, reduction: int) -> np.ndarray | None:
        """Pixels of an undamaged RGB or gray JPEG; None for all other images, which Pillow then decodes.

        Raises:
            BadImage: its data end early.
        """
        if not isinstance(self.file, JpegImageFile) or self.file.mode not in ("RGB", "L"):
            return None
        try:
            pixels = self._decoded(self.content, reduction)
        except ValueError:
            self._check_end()
            return None
        return pixels if self.orientation == 1 else np.asarray(self._turned(Image.fromarray(pixels)))

    def _check_end(self) -> None:
        """Refuse a JPEG whose data end before its last row; of a progressive one, whose rows are all there, anywhere.

        Zeros at its end, as of a file that was not written whole, are cut off: libjpeg would read blocks out of them.
        """
        content = self.content.removesuffix(_JPEG_END).rstrip(b"\0") + _JPEG_END
        try:
            self._decoded(content, 8)
        except ValueError as error:
            if _ENDS_EARLY not in str(error):
                return
            pixels = self._decoded(content, 8, strict=False)
            if "progressive" in self.file.info or (pixels[-1] == _GRAY).all():
                raise BadImage("truncated", "the data end early") from error

    def _decoded(self, content: bytes, reduction: int, strict: bool = True) -> np.ndarray:
        """
        Raises:
            ValueError: libjpeg fails; where `strict`, also if it warns of anything.
        """
        height, width = (-(-side // reduction) for side in (self.file.height, self.file.width))
        return simplejpeg.decode_jpeg(content, min_height=height, min_width=width, strict=strict)

    def _turned(self, image: Image.Image) -> Image.Image:
        return image.transpose(_TURNS[self.orientation]) if self.orientation in _TURNS else image


def decode(image: bytes, max_bytes: int, max_pixels: int, smallest_side_px: int | None = None) -> np.ndarray:
    """Uint8 RGB [H, W, 3], read-only.

    Args:
        max_bytes: a longer file is bad.
        max_pixels: an image with more is bad; judged by the header, before any pixel is decoded.
        smallest_side_px: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size, its shorter side staying at least this.

    Raises:
        BadImage: with the reason.
    """
    opened = open_image(image, max_bytes, max_pixels)
    if smallest_side_px is None:
        return opened.pixels()
    return opened.pixels(reduction_for(min(opened.height, opened.width) / smallest_side_px))


def squashed(image_HWC: np.ndarray, size_px: int) -> np.ndarray:
    """uint8 [size_px, size_px, 3], bilinear with antialiasing, as the released inference code prepares images."""
    if image_HWC.shape[:2] == (size_px, size_px):
        return image_HWC.copy()
    return np.array(Image.fromarray(image_HWC).resize((size_px, size_px), Image.Resampling.BILINEAR))


def open_image(image: bytes, max_bytes: int, max_pixels: int) -> OpenedImage:
    """Read the header; arguments and errors as those of `decode`."""
    if not image:
        raise BadImage("zero bytes")
    if len(image) > max_bytes:
        raise BadImage("too large", f"{len(image):,} bytes, max_image_bytes is {max_bytes:,}")
    file, orientation = _header(image)
    width, height = file.size
    if width * height > max_pixels:
        raise BadImage("too large", f"{width}x{height} = {width * height:,} pixels, max_image_pixels is {max_pixels:,}")
    if not width * height:
        raise BadImage("corrupt", f"{width}x{height} pixels")
    if orientation >= 5:  # these four exchange the sides
        width, height = height, width
    return OpenedImage(image, file, height, width, orientation)


def reduction_for(zoom_out: float) -> int:
    """The largest reduction that is not above `zoom_out`, the factor by which an image is to become smaller."""
    return next((reduction for reduction in (8, 4, 2) if zoom_out >= reduction), 1)


def _header(image: bytes) -> tuple[ImageFile.ImageFile, int]:
    """The file and its orientation; what Pillow warns about, such as odd EXIF, does not matter here."""
    reader = _reader(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            file = reader(io.BytesIO(image))
    except Image.DecompressionBombError as error:  # WebP alone, above Pillow's own limit
        raise BadImage("too large", str(error)) from error
    except _DAMAGED as error:
        raise _damage(error) from error
    return file, _orientation(file.info.get("exif", b""))


def _reader(image: bytes) -> type[ImageFile.ImageFile]:
    for magic, reader in _FORMATS:
        if image.startswith(magic) and (magic != b"RIFF" or image[8:12] == b"WEBP"):
            return reader
    raise BadImage("not an image", f"starts with {image[:12]!r}; JPEG, PNG, WebP, GIF and BMP are read")


def _orientation(exif: bytes) -> int:
    """EXIF orientation; 1 where it is missing or unreadable: a viewer shows such an image as it is.

    Not Pillow's getexif, which decodes the pixels of a PNG that has no EXIF.
    """
    exif = exif.removeprefix(b"Exif\0\0")
    order = ">" if exif.startswith(b"MM") else "<"
    try:
        (start,) = struct.unpack_from(f"{order}4xI", exif)
        (count,) = struct.unpack_from(f"{order}H", exif, start)
        entries = (struct.unpack_from(f"{order}H6xH", exif, start + 2 + 12 * number) for number in range(count))
        return next((value for tag, value in entries if tag == _ORIENTATION and value in _TURNS), 1)
    except struct.error:
        return 1


def _rgb(file: ImageFile.ImageFile) -> Image.Image:
    file.load()
    if file.mode.startswith("I"):  # 16-bit gray; Pillow would clip it at 255
        return Image.fromarray(_eight_bits(np.asarray(file))).convert("RGB")
    if not file.has_transparency_data:
        return file if file.mode == "RGB" else file.convert("RGB")
    white = Image.new("RGBA", file.size, "white")
    return Image.alpha_composite(white, file.convert("RGBA")).convert("RGB")


def _eight_bits(gray: np.ndarray) -> np.ndarray:
    """65535 becomes 255, rounded to nearest."""
    return ((gray.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)


def _damage(error: Exception) -> BadImage:
    text = f"{error}" or type(error).__name__
    return BadImage("truncated" if "truncated" in text.lower() else "corrupt", text)
