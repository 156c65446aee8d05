"""Loads released checkpoints (npz, google-deepmind/tips) into our encoders. D width, N patches.

Errors name the file, the tensor, its shape, the shape it must have and the rule.
"""

import re
import zipfile
import zlib
from collections.abc import Callable, Container, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from tips_ray.config import ImageEncoderConfig, TextEncoderConfig
from tips_ray.config.variants import num_heads_of
from tips_ray.models.model import TipsModel
from tips_ray.models.text import TextEncoder
from tips_ray.models.vision import ImageEncoder
from tips_ray.tokenizer import load_tokenizer

EncoderT = TypeVar("EncoderT", ImageEncoder, TextEncoder)

_SWIGLU_NAMES = {r"\.mlp\.fc1\.": ".mlp.w12.", r"\.mlp\.fc2\.": ".mlp.w3."}
_TEXT_NAMES = {
    r"^norm\.": "ln_final.",
    r"^blocks\.": "transformer.resblocks.",
    r"\.attn\.qkv\.": ".attn.in_proj_",
    r"\.attn\.proj\.": ".attn.out_proj.",
    r"\.norm([12])\.": r".ln_\1.",
    r"\.mlp\.fc1\.": ".mlp.c_fc.",
    r"\.mlp\.fc2\.": ".mlp.c_proj.",
}
_SHOWN = 3  # most problems of one file that an error lists


def load_official(
    image_path: Path | str,
    text_path: Path | str,
    tokenizer_path: Path | str | None = None,
    num_heads: int | None = None,
) -> TipsModel:
    """Load both released files of one model, and the vocabulary if given; see the loaders below.

    Raises:
        ValueError: also if the text file has no temperature; its encoder can be loaded alone.
    """
    temperature = official_temperature(text_path)
    if temperature is None:
        raise ValueError(f"{text_path}: 'temperature' is missing; load_official_text loads the encoder without it")
    image, text = load_official_image(image_path, num_heads), load_official_text(text_path, num_heads)
    return TipsModel(image, text, load_tokenizer(tokenizer_path) if tokenizer_path else None, temperature)


def load_official_image(path: Path | str, num_heads: int | None = None) -> ImageEncoder:
    """Image encoder from a released npz, GELU in the erf form of the authors' torch code.

    Args:
        path: npz; sizes come from its arrays, bf16 and fp16 become fp32.
        num_heads: attention heads; default: those of the published encoder of this width.

    Raises:
        ValueError: not an npz; an array is missing, unknown or of the wrong shape; positions that form no square grid;
            a width that is not published and no `num_heads`.
    """
    tensors, file = _arrays(path), str(path)
    config = _image_config(tensors, file, num_heads)
    return filled(ImageEncoder, config, tensors, released_image_name(config.ffn), file)


def load_official_text(path: Path | str, num_heads: int | None = None) -> TextEncoder:
    """Text encoder from a released npz, at most 64 tokens; arguments and errors as for `load_official_image`."""
    tensors, file = _arrays(path), str(path)
    tensors.pop("temperature", None)
    return filled(TextEncoder, _text_config(tensors, file, num_heads), tensors, released_text_name, file)


def official_temperature(path: Path | str) -> float | None:
    """The temperature, a divisor of cosines, in a released text npz; None if it has none."""
    temperature = _arrays(path, {"temperature"}).get("temperature")
    return None if temperature is None else temperature.item()


def official_sizes(file: BinaryIO, name: str) -> tuple[Literal["image", "text"], dict[str, Any]]:
    """The kind of encoder in an npz, and the fields of its config that follow from its arrays.

    Args:
        file: open npz; only the headers of its arrays are read.
        name: name of the file in errors.

    Raises:
        ValueError: not an npz, no released encoder, or not one that `load_official_image` accepts.
    """
    tensors = _headers(file, name)
    kind = "text" if "token_embedding.weight" in tensors else "image"
    sizes = _text_sizes(tensors, name) if kind == "text" else _image_sizes(tensors, name)
    num_heads = num_heads_of(sizes["width"])
    return kind, {**sizes, **({"num_heads": num_heads} if num_heads else {})}


def _headers(file: BinaryIO, name: str) -> dict[str, Tensor]:
    """Arrays of an npz as tensors without content."""
    try:
        with zipfile.ZipFile(file) as archive:
            shapes = {entry.removesuffix(".npy"): _header(archive, entry) for entry in archive.namelist()}
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{name} is not an npz file: {error}") from error
    return {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}


def _header(archive: zipfile.ZipFile, entry: str) -> tuple[int, ...]:
    with archive.open(entry) as array:
        is_first = np.lib.format.read_magic(array) == (1, 0)
        read = np.lib.format.read_array_header_1_0 if is_first else np.lib.format.read_array_header_2_0
        return read(array)[0]


def _image_config(tensors: Mapping[str, Tensor], file: str, num_heads: int | None) -> ImageEncoderConfig:
    sizes = _image_sizes(tensors, file)
    return ImageEncoderConfig(**sizes, num_heads=num_heads or _published_heads(sizes["width"], file), gelu="erf")


def _image_sizes(tensors: Mapping[str, Tensor], file: str) -> dict[str, Any]:
    """Sizes of an image encoder from the shapes of its tensors, under their released names."""
    width, _, patch, _ = _shape(tensors, "patch_embed.proj.weight", "(D, 3, patch, patch)", file)
    positions = _shape(tensors, "pos_embed", "(1, 1 + N, D)", file)
    grid = round(max(positions[1] - 1, 0) ** 0.5)
    if grid * grid != positions[1] - 1 or not grid:
        raise ValueError(f"{file}: 'pos_embed' {positions} must be (1, 1 + N, D) with N a square: one grid of patches")
    sizes = {"width": width, "depth": _depth(tensors, "blocks"), "patch_size_px": patch, "image_size_px": grid * patch}
    if "blocks.0.mlp.w12.weight" in tensors:
        hidden = _shape(tensors, "blocks.0.mlp.w12.weight", "(2 hidden, D)", file)[0] // 2
        return {**sizes, "ffn": "swiglu", "ffn_hidden": hidden}
    hidden = _shape(tensors, "blocks.0.mlp.fc1.weight", "(hidden, D)", file)[0]
    return {**sizes, "ffn": "mlp", "ffn_hidden": hidden}


def _text_config(tensors: Mapping[str, Tensor], file: str, num_heads: int | None) -> TextEncoderConfig:
    sizes = _text_sizes(tensors, file)
    return TextEncoderConfig(**sizes, num_heads=num_heads or _published_heads(sizes["width"], file))


def _text_sizes(tensors: Mapping[str, Tensor], file: str) -> dict[str, Any]:
    """Sizes of a text encoder from the shapes of its tensors, under their released names."""
    vocab_size, width = _shape(tensors, "token_embedding.weight", "(vocabulary, D)", file)
    return {
        "width": width,
        "depth": _depth(tensors, r"transformer\.resblocks"),
        "ffn_hidden": _shape(tensors, "transformer.resblocks.0.mlp.c_fc.weight", "(hidden, D)", file)[0],
        "vocab_size": vocab_size,
    }


def released_image_name(ffn: str) -> Callable[[str], str]:
    """Our name -> released name, for feed-forward `mlp` or `swiglu`."""
    return lambda name: renamed(name, _SWIGLU_NAMES if ffn == "swiglu" else {})


def released_text_name(name: str) -> str:
    """Our name -> released name."""
    return renamed(name, _TEXT_NAMES)


def filled(
    encoder_class: type[EncoderT], config: Any, tensors: Mapping[str, Tensor], name_in_file: Callable, file: str
) -> EncoderT:
    """Encoder of `config` that holds `tensors` without a copy, fp32, in evaluation mode.

    Raises:
        ValueError: names or shapes differ from those of the encoder.
    """
    with torch.device("meta"):
        encoder = encoder_class(config)
    shapes = {name_in_file(name): tuple(value.shape) for name, value in encoder.state_dict().items()}
    problems = [
        *(f"{name!r} {shape} is missing" for name, shape in shapes.items() if name not in tensors),
        *(f"{name!r} {tuple(tensors[name].shape)} is unknown" for name in tensors if name not in shapes),
        *(
            f"{name!r} has shape {tuple(tensors[name].shape)} and must have {shape}"
            for name, shape in shapes.items()
            if name in tensors and tuple(tensors[name].shape) != shape
        ),
    ]
    if problems:
        more = f"; and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        rule = f"an encoder of width {config.width}, depth {config.depth}, ffn_hidden {config.ffn_hidden} is expected"
        raise ValueError(f"{file}: {'; '.join(problems[:_SHOWN])}{more} ({rule})")
    encoder.load_state_dict({name: tensors[name_in_file(name)] for name in encoder.state_dict()}, assign=True)
    return encoder.eval()


def renamed(name: str, table: Mapping[str, str]) -> str:
    """`name` after all substitutions pattern -> replacement, in order."""
    for pattern, replacement in table.items():
        name = re.sub(pattern, replacement, name)
    return name


def _arrays(path: Path | str, wanted: Container[str] | None = None) -> dict[str, Tensor]:
    """Arrays of an npz by name, fp32; with `wanted`, only those are read."""
    with open(path, "rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError(f"{path} is not an npz file")
    with np.load(path, allow_pickle=False) as arrays:
        names = [name for name in arrays.files if wanted is None or name in wanted]
        return {name: _float32(arrays, name, path) for name in names}


def _float32(arrays: Mapping[str, np.ndarray], name: str, path: Path | str) -> Tensor:
    """One array as fp32; numpy has no bf16 and gives its two bytes as void."""
    try:
        array = arrays[name]
    except (ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{path}: {name!r} cannot be read: {error}") from error
    if array.dtype == np.dtype("V2"):
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16).float()
    if array.dtype.kind != "f":
        raise ValueError(f"{path}: {name!r} is {array.dtype}; weights must be floating point")
    return torch.from_numpy(array.astype(np.float32, copy=False))


def _shape(tensors: Mapping[str, Tensor], name: str, form: str, file: str) -> tuple[int, ...]:
    if name not in tensors:
        raise ValueError(f"{file}: {name!r} {form} is missing: sizes are read from it")
    shape = tuple(tensors[name].shape)
    if len(shape) != form.count(",") + 1:
        raise ValueError(f"{file}: {name!r} has shape {shape} and must have {form}")
    return shape


def _depth(tensors: Mapping[str, Tensor], prefix: str) -> int:
    """Number of blocks, taken from the highest index, so that a gap shows as a missing tensor."""
    found = (re.match(prefix + r"\.(\d+)\.", name) for name in tensors)
    return 1 + max((int(match[1]) for match in found if match), default=0)


def _published_heads(width: int, file: str) -> int:
    num_heads = num_heads_of(width)
    if num_heads is None:
        raise ValueError(f"{file}: width ({width}) is not a published one: pass num_heads")
    return num_heads
