import numpy as np
import pytest
import torch
from torch import Tensor

from tips_ray.models import (
    load_official,
    load_official_image,
    load_official_text,
    official_temperature,
    train_tokenizer,
)


def _image_arrays(width=384, depth=2, ffn="mlp") -> dict[str, np.ndarray]:
    """Random arrays under the released names, with a grid of 3 x 3 and feed-forward width 24."""
    shapes = {"cls_token": (1, 1, width), "register_tokens": (1, 1, width), "mask_token": (1, width)}
    shapes |= {"pos_embed": (1, 10, width), "patch_embed.proj.weight": (width, 3, 14, 14)}
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    inner = [("fc1", 24, width), ("fc2", width, 24)] if ffn == "mlp" else [("w12", 48, width), ("w3", width, 24)]
    for block in (f"blocks.{index}" for index in range(depth)):
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias", "ls1.gamma", "ls2.gamma"):
            shapes[f"{block}.{name}"] = (width,)
        for name, rows, columns in [("attn.qkv", 3 * width, width), ("attn.proj", width, width)]:
            shapes |= {f"{block}.{name}.weight": (rows, columns), f"{block}.{name}.bias": (rows,)}
        for name, rows, columns in inner:
            shapes |= {f"{block}.mlp.{name}.weight": (rows, columns), f"{block}.mlp.{name}.bias": (rows,)}
    return _random(shapes)


def _text_arrays(width=384, vocab_size=50) -> dict[str, np.ndarray]:
    shapes = {"token_embedding.weight": (vocab_size, width), "ln_final.weight": (width,), "ln_final.bias": (width,)}
    shapes["temperature"] = ()
    block = "transformer.resblocks.0"
    for name in ("ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "attn.out_proj.bias", "mlp.c_proj.bias"):
        shapes[f"{block}.{name}"] = (width,)
    shapes |= {f"{block}.attn.in_proj_weight": (3 * width, width), f"{block}.attn.in_proj_bias": (3 * width,)}
    shapes |= {f"{block}.attn.out_proj.weight": (width, width), f"{block}.mlp.c_fc.weight": (24, width)}
    shapes |= {f"{block}.mlp.c_fc.bias": (24,), f"{block}.mlp.c_proj.weight": (width, 24)}
    return _random(shapes)


def _random(shapes) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    return {name: generator.random(shape, dtype=np.float32) + np.float32(0.01) for name, shape in shapes.items()}


def _saved(path, arrays):
    np.savez(path, **arrays)
    return path


def test_sizes_and_published_heads_come_from_the_arrays(tmp_path):
    config = load_official_image(_saved(tmp_path / "image.npz", _image_arrays())).config
    assert (config.width, config.depth, config.num_heads, config.ffn_hidden, config.ffn) == (384, 2, 6, 24, "mlp")
    assert (config.patch_size_px, config.image_size_px, config.gelu) == (14, 42, "erf")
    gated = load_official_image(_saved(tmp_path / "gated.npz", _image_arrays(ffn="swiglu"))).config
    assert (gated.ffn, gated.ffn_hidden) == ("swiglu", 24)
    text = load_official_text(_saved(tmp_path / "text.npz", _text_arrays())).config
    assert (text.width, text.depth, text.num_heads, text.ffn_hidden) == (384, 1, 6, 24)
    assert (text.vocab_size, text.max_tokens) == (50, 64)


def test_a_width_that_is_not_published_needs_num_heads(tmp_path):
    path = _saved(tmp_path / "image.npz", _image_arrays(width=40))
    with pytest.raises(ValueError, match=r"width \(40\) is not a published one: pass num_heads"):
        load_official_image(path)
    assert load_official_image(path, num_heads=5).config.num_heads == 5


def test_half_precision_arrays_become_float32(tmp_path):
    arrays = _image_arrays(width=40, depth=1)
    bfloat16 = torch.from_numpy(arrays["norm.weight"]).bfloat16()
    stored: dict[str, np.ndarray] = {name: array.astype(np.float16) for name, array in arrays.items()}
    stored["norm.weight"] = bfloat16.view(torch.int16).numpy().view("V2")  # as ml_dtypes writes it
    encoder = load_official_image(_saved(tmp_path / "half.npz", stored), num_heads=5)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.float32}
    assert torch.equal(encoder.norm.weight, bfloat16.float())
    assert torch.equal(encoder.norm.bias, Tensor(arrays["norm.bias"].astype(np.float16).astype(np.float32)))


def test_both_files_make_a_model(tmp_path):
    image, text = _saved(tmp_path / "image.npz", _image_arrays()), _text_arrays()
    tokenizer = train_tokenizer(["a red cube"], 20).save(tmp_path / "tokenizer.json")
    model = load_official(image, _saved(tmp_path / "text.npz", text), tokenizer)
    assert model.temperature == official_temperature(tmp_path / "text.npz") == text["temperature"].item()
    assert model.tokenizer and model.text(model.tokenizer(["a red cube"])).shape == (1, 384)
    assert load_official(image, tmp_path / "text.npz").tokenizer is None
    del text["temperature"]
    assert official_temperature(_saved(tmp_path / "text.npz", text)) is None
    with pytest.raises(ValueError, match=r"text\.npz: 'temperature' is missing"):
        load_official(image, tmp_path / "text.npz")


def test_parts_that_do_not_fit_together_are_refused(tmp_path):
    image = _saved(tmp_path / "image.npz", _image_arrays(width=40))
    with pytest.raises(ValueError, match=r"text width \(64\) must equal image width \(40\)"):
        load_official(image, _saved(tmp_path / "text.npz", _text_arrays(width=64)), num_heads=4)
    text = _saved(tmp_path / "text.npz", _text_arrays(width=40, vocab_size=6))
    tokenizer = train_tokenizer(["a red cube"], 20).save(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match=r"tokenizer has \d+ ids; the text encoder's vocab_size \(6\)"):
        load_official(image, text, tokenizer, num_heads=4)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("norm.bias", None, r"'norm\.bias' \(384,\) is missing \(an encoder of width 384, depth 2, ffn_hidden 24"),
        ("pos_embed", None, r"'pos_embed' \(1, 1 \+ N, D\) is missing: sizes are read from it"),
        ("blocks.0.norm1.bias", None, r"'blocks\.0\.norm1\.bias' \(384,\) is missing"),
        ("head.weight", np.zeros((2, 3), "f"), r"'head\.weight' \(2, 3\) is unknown"),
        ("norm.bias", np.zeros(383, "f"), r"'norm\.bias' has shape \(383,\) and must have \(384,\)"),
        ("pos_embed", np.zeros((1, 11, 384), "f"), r"'pos_embed' \(1, 11, 384\) must be .* with N a square"),
        ("pos_embed", np.zeros((11, 384), "f"), r"'pos_embed' has shape \(11, 384\) and must have \(1, 1 \+ N, D\)"),
        ("norm.bias", np.zeros(384, "i8"), r"'norm\.bias' is int64; weights must be floating point"),
        ("norm.bias", np.array([None]), r"'norm\.bias' cannot be read: Object arrays cannot be loaded"),
    ],
)
def test_a_wrong_image_file_names_tensor_shapes_and_rule(name, array, message, tmp_path):
    arrays: dict = _image_arrays()
    arrays.pop(name, None)
    path = _saved(tmp_path / "wrong.npz", arrays if array is None else {**arrays, name: array})
    with pytest.raises(ValueError, match=r"wrong\.npz: " + message):
        load_official_image(path)


def test_a_wrong_text_file_names_released_tensors(tmp_path):
    arrays = _text_arrays()
    arrays["transformer.resblocks.2.ln_1.weight"] = arrays.pop("transformer.resblocks.0.ln_1.weight")
    message = r"'transformer\.resblocks\.0\.ln_1\.weight' \(384,\) is missing; .*; and \d+ more \(.* depth 3,"
    with pytest.raises(ValueError, match=message):
        load_official_text(_saved(tmp_path / "gap.npz", arrays))
    with pytest.raises(ValueError, match=r"'token_embedding\.weight' \(vocabulary, D\) is missing"):
        load_official_text(_saved(tmp_path / "image.npz", _image_arrays()))


def test_other_files_are_named(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(ValueError, match=r"array\.npy is not an npz file"):
        load_official_image(tmp_path / "array.npy")
    with pytest.raises(FileNotFoundError, match="absent"):
        load_official_image(tmp_path / "absent.npz")
