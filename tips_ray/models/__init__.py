"""Image and text encoders of TIPS, and their import from and export to other formats. B images or texts, T tokens."""

from tips_ray.models.model import TipsModel, exported
from tips_ray.models.official import load_official, load_official_image, load_official_text, official_temperature
from tips_ray.models.text import TextEncoder, text_encoder
from tips_ray.models.timm_folder import export_timm
from tips_ray.models.transformers_folder import export_transformers, load_transformers
from tips_ray.models.vision import (
    ImageEncoder,
    ImageFeatures,
    cls_attention,
    dense_features,
    features_with_layers,
    image_encoder,
)
from tips_ray.tokenizer import Tokenizer, load_tokenizer, train_tokenizer

__all__ = [
    "ImageEncoder",
    "ImageFeatures",
    "TextEncoder",
    "TipsModel",
    "Tokenizer",
    "cls_attention",
    "dense_features",
    "export_timm",
    "export_transformers",
    "exported",
    "image_encoder",
    "features_with_layers",
    "load_official",
    "load_official_image",
    "load_official_text",
    "load_tokenizer",
    "load_transformers",
    "official_temperature",
    "text_encoder",
    "train_tokenizer",
]
