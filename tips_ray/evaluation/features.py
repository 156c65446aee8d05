"""Features of a frozen encoder over many images. N images, L patches, D width."""

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.models import ImageEncoder, ImageFeatures, TextEncoder


@torch.inference_mode()
def image_features(encoder: ImageEncoder, images_NHWC: Tensor, batch_images: int = 64) -> ImageFeatures:
    """Tokens of uint8 RGB images of one size, on the host.

    Args:
        encoder: left in the mode it was in; drop-path needs keys and is therefore off.
        images_NHWC: uint8.
        batch_images: images per pass.
    """
    device = next(encoder.parameters()).device
    parts = []
    for images_BHWC in images_NHWC.split(batch_images):
        images_BCHW = images_BHWC.to(device).permute(0, 3, 1, 2).float() / 255
        parts.append([feature.float().cpu() for feature in encoder(images_BCHW)])
    return ImageFeatures(*(torch.cat(part) for part in zip(*parts, strict=True)))


@torch.inference_mode()
def text_features(encoder: TextEncoder, token_ids_NT: Tensor, batch_texts: int = 256) -> Tensor:
    """Unit-norm text embeddings [N, D], on the host."""
    device = next(encoder.parameters()).device
    parts = [encoder(ids_BT.to(device)).float().cpu() for ids_BT in token_ids_NT.split(batch_texts)]
    return F.normalize(torch.cat(parts), dim=-1)
