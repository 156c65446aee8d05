"""Encoders compared with the arrays of tests/golden; every name in a file is tested, and sizes come from the file."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config import ImageEncoderConfig
from tips_ray.models import ImageEncoder, dense_features, load_official_image, load_official_text, official_temperature

GOLDEN = Path(__file__).parents[1] / "golden"
BORROWED_WEIGHTS = "vision_mlp.npz"
"""File whose weights are used for a file without `param/`."""


def _arrays(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / name, allow_pickle=False) as arrays:
        return {key: torch.from_numpy(arrays[key]) for key in arrays.files}


def _below(arrays: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}


def _cases(pattern: str, result: str) -> list[tuple[str, str]]:
    """Pairs (file, name) of every out/<name>/<result>."""
    return [
        (path.name, key.split("/")[1])
        for path in sorted(GOLDEN.glob(pattern))
        for key in np.load(path, allow_pickle=False).files
        if key.startswith("out/") and key.endswith(f"/{result}")
    ]


def _released_file(arrays: dict[str, Tensor], folder: Path) -> Path:
    path = folder / "released.npz"
    np.savez(path, **{key: value.numpy() for key, value in _below(arrays, "param/").items()})  # pyright: ignore[reportArgumentType]
    return path


def _image_encoder(arrays: dict[str, Tensor], folder: Path, gelu: str) -> ImageEncoder:
    encoder = load_official_image(_released_file(arrays, folder), num_heads=int(arrays["cfg/heads"]))
    if gelu == "erf":
        return encoder
    changed = ImageEncoder(ImageEncoderConfig(**{**encoder.config.model_dump(), "gelu": gelu}))
    changed.load_state_dict(encoder.state_dict())
    return changed


@torch.no_grad()
@pytest.mark.parametrize(("file", "name"), _cases("vision_*.npz", "cls1"))
def test_image_tokens_match_the_released_code(file, name, tmp_path):
    arrays = _arrays(file)
    source, layer, masked, tanh = re.fullmatch(r"(.+?)(?:_layer(\d+))?(_masked)?(_tanh)?", name).groups()  # pyright: ignore[reportOptionalMemberAccess]
    encoder = _image_encoder(arrays, tmp_path, "tanh" if tanh else "erf")
    images, mask = arrays[f"in/{source}"], arrays[f"in/{source}_mask"] if masked else None
    after_block: list = []
    encoder.blocks[int(layer or -1)].register_forward_hook(lambda _, __, tokens_PD: after_block.append(tokens_PD))
    features = encoder(images, mask)
    found: dict[str, Tensor] = dict(zip(("cls1", "cls2", "patches"), features, strict=True))
    if layer:
        tokens_BTD = encoder.norm(after_block[0]).unflatten(0, (len(images), -1))
        found = {"cls1": tokens_BTD[:, 0], "cls2": tokens_BTD[:, 1], "patches": tokens_BTD[:, 2:]}
    for key, expected in _below(arrays, f"out/{name}/").items():
        torch.testing.assert_close(found[key], expected, atol=5e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(("file", "name"), _cases("vision_*.npz", "values"))
def test_dense_features_match_the_values_trick_of_the_released_notebook(file, name, tmp_path):
    arrays = _arrays(file)
    weights = arrays if "param/cls_token" in arrays else _arrays(BORROWED_WEIGHTS)
    encoder = _image_encoder(weights, tmp_path, "erf")
    images = arrays[f"in/{name}"] if f"in/{name}" in arrays else weights[f"in/{name}"]
    sides = [-(-side // encoder.config.patch_size_px) * encoder.config.patch_size_px for side in images.shape[-2:]]
    if sides != list(images.shape[-2:]):
        images = F.interpolate(images, sides, mode="bicubic", align_corners=False)
    values = dense_features(encoder, images, "values")
    cosine = torch.einsum("brcd,kd->bkrc", F.normalize(values, dim=-1), arrays["in/text"])
    torch.testing.assert_close(values, arrays[f"out/{name}/values"], atol=5e-5, rtol=0)
    torch.testing.assert_close(cosine, arrays[f"out/{name}/cosine"], atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "file", [path.name for path in GOLDEN.glob("vision_*.npz") if path.name != "vision_values.npz"]
)
def test_sizes_read_from_the_arrays_are_those_of_the_file(file, tmp_path):
    arrays = _arrays(file)
    config = _image_encoder(arrays, tmp_path, "erf").config
    found = (
        config.width,
        config.depth,
        config.num_heads,
        config.ffn_hidden,
        config.patch_size_px,
        config.image_size_px,
    )
    assert found == tuple(
        int(arrays[f"cfg/{key}"]) for key in ("dim", "depth", "heads", "ffn_hidden", "patch", "image")
    )


@torch.no_grad()
def test_texts_match_the_released_code_whatever_the_padding(tmp_path):
    arrays = _arrays("text.npz")
    path = _released_file(arrays, tmp_path)
    encoder = load_official_text(path, num_heads=int(arrays["cfg/heads"]))
    assert encoder.config.max_tokens == int(arrays["cfg/max_len"])
    valid = arrays["in/paddings"] == 0
    text_BD, expected = encoder(arrays["in/ids"], valid), arrays["out/text"]
    torch.testing.assert_close(text_BD, expected, atol=5e-5, rtol=0)
    torch.testing.assert_close(F.normalize(text_BD, dim=1), arrays["out/text_unit"], atol=5e-5, rtol=0)
    torch.testing.assert_close(encoder(arrays["in/ids_junk"], valid), expected, atol=5e-5, rtol=0)
    short = encoder(arrays["in/short_ids"], arrays["in/short_paddings"] == 0)
    torch.testing.assert_close(short, expected[arrays["in/short_rows"]], atol=5e-5, rtol=0)
    assert official_temperature(path) == arrays["param/temperature"].item()
