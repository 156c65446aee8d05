"""Image and text encoders of TIPS, and their way in from and out to other formats. B images or texts, T tokens."""

from tips_ray.models.text import TextEncoder, text_encoder
from tips_ray.models.vision import ImageEncoder, ImageFeatures, dense_features, image_encoder

__all__ = ["ImageEncoder", "ImageFeatures", "TextEncoder", "dense_features", "image_encoder", "text_encoder"]
