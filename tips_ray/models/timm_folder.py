"""Exports our image encoder to a folder for `timm.create_model("local-dir:FOLDER", pretrained=True)`. D width."""

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tips_ray.config import ImageEncoderConfig
from tips_ray.models.model import TipsModel, new_folder
from tips_ray.models.vision import ImageEncoder

_PUBLISHED = {(768, 12): "base", (1024, 24): "large", (1152, 27): "so400m"}
_ACT_LAYER = {"tanh": "gelu_tanh", "erf": "gelu"}


def export_timm(model: TipsModel | ImageEncoder, folder: Path | str) -> Path:
    """Write the image encoder for timm, also for `features_only=True`; `forward` gives CLS-web, [B, D].

    Outputs equal ours at the native size. At other sizes timm resamples positions bicubically, TIPS bilinearly. The
    mask token is left out, as timm has none. `cls_token` includes CLS-web's position, as timm gives that token none.

    Raises:
        ValueError: `folder` exists and is not empty.
    """
    import timm
    from timm.models import save_for_hf

    image = model if isinstance(model, ImageEncoder) else model.image
    config, side = image.config, image.config.image_size_px
    model_args = _model_args(config)
    with torch.device("meta"):
        network: Any = timm.create_model(_architecture(config), **model_args)
    network.load_state_dict(_tensors(image), assign=True)
    # The released inference code squashes the whole image, bilinear; timm's entry crops, and names Google's weights.
    data = {"input_size": (3, side, side), "interpolation": "bilinear", "crop_pct": 1.0, "crop_mode": "squash"}
    unnamed = {"pretrained_cfg": {"tag": None, "license": None}}
    with new_folder(folder) as temporary:
        save_for_hf(network, str(temporary), unnamed, model_args, safe_serialization=True, data_config=data)
    return Path(folder)


def _architecture(config: ImageEncoderConfig) -> str:
    """timm's name of the size. `model_args` describes sizes unknown to timm; only SwiGLU must be in the name."""
    size = "giant" if config.ffn == "swiglu" else _PUBLISHED.get((config.width, config.depth), "base")
    return f"vit_{size}_patch14_reg1_tipsv2"


def _model_args(config: ImageEncoderConfig) -> dict[str, Any]:
    hidden = 2 * config.ffn_hidden if config.ffn == "swiglu" else config.ffn_hidden  # gate and value in one matrix
    ratio = hidden / config.width
    sizes = {
        "img_size": config.image_size_px,
        "patch_size": config.patch_size_px,
        "embed_dim": config.width,
        "depth": config.depth,
        "num_heads": config.num_heads,
        # timm takes int(D * ratio), which would truncate a product slightly too small
        "mlp_ratio": ratio if int(config.width * ratio) == hidden else math.nextafter(ratio, math.inf),
        "init_values": config.layer_scale_init,
        "out_indices": min(3, config.depth),  # for features_only; timm's default needs three blocks
    }
    return sizes if config.ffn == "swiglu" else {**sizes, "act_layer": _ACT_LAYER[config.gelu]}


def _tensors(image: ImageEncoder) -> dict[str, Tensor]:
    """Weights under timm's names, which differ from ours in the tokens only; fp32 on the CPU."""
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in image.state_dict().items()}
    del tensors["mask_token"]
    web_1D, positions_LD = tensors["pos_embed"][0].split([1, image.config.grid**2])
    tensors["cls_token"] = tensors["cls_token"] + web_1D
    tensors["reg_token"] = tensors.pop("register_tokens")
    tensors["pos_embed"] = positions_LD[None].contiguous()
    return tensors
