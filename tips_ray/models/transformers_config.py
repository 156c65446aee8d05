"""Converts between the sizes of our encoders and the config.json of a `Tipsv2Model` folder."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tips_ray.config import ImageEncoderConfig, TextEncoderConfig
from tips_ray.config.variants import image_sizes

_HIDDEN_ACT = {"tanh": "gelu_pytorch_tanh", "erf": "gelu"}
_GELU: dict[str, Any] = {act: form for form, act in _HIDDEN_ACT.items()}
_IMAGE_RULES = {"layer_norm_eps": 1e-6, "num_channels": 3, "num_register_tokens": 1, "qkv_bias": True}
_TEXT_RULES = {"layer_norm_eps": 1e-5, "hidden_act": "relu", "scale_sqrt_depth": True, "pad_token_id": 0}
_FIRST_RELEASE = {"vit_small": "S", "vit_base": "B", "vit_large": "L", "vit_so400m": "So400m", "vit_giant2": "g"}


def written_config(image: ImageEncoderConfig, text: TextEncoderConfig, temperature: float) -> Any:
    """The model's `Tipsv2Config`.

    Raises:
        ValueError: the config cannot express the SwiGLU hidden width.
    """
    from transformers import Tipsv2Config

    config: Any = Tipsv2Config(
        vision_config=_vision_config(image),  # pyright: ignore[reportArgumentType]
        text_config=_text_config(text),
        temperature_init_value=temperature,
        dtype="float32",
    )
    config.architectures = ["Tipsv2Model"]
    return config


def read_config(folder: Path) -> tuple[ImageEncoderConfig, TextEncoderConfig, float]:
    """Both encoders' sizes and the temperature in `folder`/config.json, which has transformers' form or the flat form
    of the first TIPSv2 release.

    Raises:
        ValueError: there is no config.json, or it is of another architecture.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(f"{folder} is no transformers folder: it has no config.json")
    tree = json.loads(path.read_text(encoding="utf-8"))
    model_type = tree.get("model_type") if isinstance(tree, dict) else None
    if model_type != "tipsv2":
        raise ValueError(f"{path}: model_type ({model_type!r}) must be 'tipsv2'")
    try:
        return _first_release(tree) if "vision_fn" in tree else _transformers_form(tree)
    except KeyError as error:
        raise ValueError(f"{path}: {error} is missing") from error
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _transformers_form(tree: dict[str, Any]) -> tuple[ImageEncoderConfig, TextEncoderConfig, float]:
    from huggingface_hub.errors import StrictDataclassError
    from transformers import Tipsv2Config

    try:
        config: Any = Tipsv2Config.from_dict(tree)
    except StrictDataclassError as error:
        raise ValueError(str(error)) from error
    image, text = _image_encoder_config(config.vision_config), _text_encoder_config(config.text_config)
    return image, text, config.temperature_init_value


def _first_release(tree: Mapping[str, Any]) -> tuple[ImageEncoderConfig, TextEncoderConfig, float]:
    """Read the flat form. Source: config.json of google/tipsv2-l14, -so400m14 and -g14 on the Hugging Face Hub."""
    if tree["vision_fn"] not in _FIRST_RELEASE:
        raise ValueError(f"vision_fn ({tree['vision_fn']!r}) must be one of {', '.join(_FIRST_RELEASE)}")
    given = {"width": tree["embed_dim"], "patch_size_px": tree["patch_size"], "image_size_px": tree["img_size"]}
    sizes = {**image_sizes(_FIRST_RELEASE[tree["vision_fn"]]), **given, "layer_scale_init": tree["init_values"]}
    text = TextEncoderConfig(
        width=tree["text_hidden_size"],
        depth=tree["text_num_layers"],
        num_heads=tree["text_num_heads"],
        ffn_hidden=tree["text_mlp_dim"],
        vocab_size=tree["vocab_size"],
        max_tokens=tree["max_len"],
    )
    return ImageEncoderConfig(**sizes, gelu="erf"), text, tree["temperature"]


def _vision_config(config: ImageEncoderConfig) -> dict[str, Any]:
    return {
        "hidden_size": config.width,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "mlp_ratio": _mlp_ratio(config),
        "use_swiglu_ffn": config.ffn == "swiglu",
        "hidden_act": _HIDDEN_ACT[config.gelu],
        "image_size": config.image_size_px,
        "patch_size": config.patch_size_px,
        "layerscale_value": config.layer_scale_init,
    }


def _text_config(config: TextEncoderConfig) -> dict[str, Any]:
    return {
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "intermediate_size": config.ffn_hidden,
        "num_hidden_layers": config.depth,
        "num_attention_heads": config.num_heads,
        "max_position_embeddings": config.max_tokens,
    }


def _image_encoder_config(config: Any) -> ImageEncoderConfig:
    _check_rules("vision_config", config, _IMAGE_RULES)
    ffn = "swiglu" if config.use_swiglu_ffn else "mlp"
    if ffn == "mlp" and config.hidden_act not in _GELU:
        raise ValueError(f"vision_config.hidden_act ({config.hidden_act!r}) must be one of {', '.join(_GELU)}")
    return ImageEncoderConfig(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        ffn_hidden=_ffn_hidden(ffn, config.hidden_size, config.mlp_ratio),
        ffn=ffn,
        patch_size_px=_side("patch_size", config.patch_size),
        image_size_px=_side("image_size", config.image_size),
        gelu=_GELU.get(config.hidden_act, "erf"),
        layer_scale_init=config.layerscale_value,
    )


def _text_encoder_config(config: Any) -> TextEncoderConfig:
    _check_rules("text_config", config, _TEXT_RULES)
    return TextEncoderConfig(
        width=config.hidden_size,
        depth=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        ffn_hidden=config.intermediate_size,
        vocab_size=config.vocab_size,
        max_tokens=config.max_position_embeddings,
    )


def _ffn_hidden(ffn: str, width: int, mlp_ratio: float) -> int:
    """Hidden width. Source: Tipsv2VisionMLP and Tipsv2VisionSwiGLUFFN of transformers."""
    hidden = int(width * mlp_ratio)
    return (int(hidden * 2 / 3) + 7) // 8 * 8 if ffn == "swiglu" else hidden


def _mlp_ratio(config: ImageEncoderConfig) -> float:
    """The ratio from which transformers computes `ffn_hidden`."""
    ratio = config.ffn_hidden * (1.5 if config.ffn == "swiglu" else 1) / config.width
    for candidate in (ratio, math.nextafter(ratio, math.inf)):  # int() truncates a product slightly too small
        if _ffn_hidden(config.ffn, config.width, candidate) == config.ffn_hidden:
            return candidate
    raise ValueError(
        f"ffn_hidden ({config.ffn_hidden}) must be a multiple of 8 with ffn (swiglu): Tipsv2VisionConfig has no other"
    )


def _side(key: str, size: int | list[int] | tuple[int, ...]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"vision_config.{key} ({size}) must be square")
    return height


def _check_rules(part: str, config: Any, rules: Mapping[str, Any]) -> None:
    for key, expected in rules.items():
        if getattr(config, key) != expected:
            raise ValueError(f"{part}.{key} ({getattr(config, key)!r}) must be {expected!r}: TIPS has no other")
