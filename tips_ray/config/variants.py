"""Published sizes of the encoders. Source: the TIPS and TIPSv2 inference code."""

from typing import Any

_IMAGE = {
    "S": dict(width=384, depth=12, num_heads=6, ffn_hidden=1536),
    "B": dict(width=768, depth=12, num_heads=12, ffn_hidden=3072),
    "L": dict(width=1024, depth=24, num_heads=16, ffn_hidden=4096),
    "So400m": dict(width=1152, depth=27, num_heads=16, ffn_hidden=4304),
    "g": dict(width=1536, depth=40, num_heads=24, ffn_hidden=4096, ffn="swiglu"),
}
_TEXT = {
    "S": dict(width=384, depth=12, num_heads=6, ffn_hidden=1536),
    "B": dict(width=768, depth=12, num_heads=12, ffn_hidden=3072),
    "L": dict(width=1024, depth=12, num_heads=16, ffn_hidden=4096),
    "So400m": dict(width=1152, depth=27, num_heads=16, ffn_hidden=4304),
    "g": dict(width=1536, depth=12, num_heads=24, ffn_hidden=6144),
}

VARIANTS = tuple(_IMAGE)


def image_sizes(variant: str) -> dict[str, Any]:
    """Fields of ImageEncoderConfig for `variant` (S B L So400m g).

    Raises:
        ValueError: there is no such variant.
    """
    return _named(_IMAGE, variant)


def text_sizes(variant: str) -> dict[str, Any]:
    """Fields of TextEncoderConfig for the text encoder beside image encoder `variant`."""
    return _named(_TEXT, variant)


def num_heads_of(width: int) -> int | None:
    """Attention heads of the published encoder of this width, None for other widths."""
    return next((int(sizes["num_heads"]) for sizes in _IMAGE.values() if sizes["width"] == width), None)


def _named(table: dict[str, dict], variant: str) -> dict:
    if variant not in table:
        raise ValueError(f"variant ({variant!r}) must be one of {', '.join(table)}")
    return table[variant]
