"""Interface of frozen encoders, and the encoder of TIPS. B images, L patches, D width, E width of embeddings."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.models import (
    ImageEncoder,
    ImageFeatures,
    TextEncoder,
    TipsModel,
    Tokenizer,
    cls_attention,
    dense_features,
    features_with_layers,
)

TEXTS_AT_ONCE = 256


class Features(NamedTuple):
    """Features of images of one size."""

    patches_BLD: Tensor
    """Patch features, row-major on a square grid."""
    embeddings: dict[str, Tensor]
    """Embeddings [B, E] by name; none of them is L2-normalised."""


class Encoder(ABC):
    """A frozen encoder: square RGB images in [0, 1] in, features out, without gradient.

    An encoder applies its mean and standard deviation itself.
    """

    image_size_px: int
    """Side of the input images."""
    patch_size_px: int
    embeddings: tuple[str, ...]
    """Names of the embeddings in `Features`: `cls_web` and `cls_synthetic` for TIPS; `cls`, `pooled` for others."""
    text_embeddings: tuple[str, ...] = ()
    """Embeddings that can be compared with texts; empty without a text tower or without a vocabulary for it."""
    has_text_patches: bool = False
    """Whether patches can be compared with texts."""
    preparation: bytes = b""
    """Identifies what happens to images and texts before the weights, such as the vocabulary; part of `fingerprint`."""
    checkpoint_uri: str | None = None
    """For an encoder of a run: its newest complete checkpoint when it was loaded; a running run writes more."""

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over names and values of all weights, and over `preparation`."""
        digest = hashlib.sha256(self.preparation)
        for network in self.networks:
            for name, value in sorted(network.state_dict().items()):
                digest.update(name.encode())
                digest.update(value.detach().float().cpu().numpy().tobytes())
        return digest.hexdigest()

    @property
    def grid(self) -> int:
        """Patches along one side."""
        return self.image_size_px // self.patch_size_px

    @property
    @abstractmethod
    def networks(self) -> tuple[nn.Module, ...]:
        """All modules with weights."""

    @abstractmethod
    def features(self, images_BCHW: Tensor) -> Features: ...

    def features_with_layers(self, images_BCHW: Tensor) -> tuple[Features, list[Tensor]]:
        """`features`, and the patches [B, L, D] after each quarter of the blocks before any final norm, in one pass."""
        raise NotImplementedError

    def layers(self, images_BCHW: Tensor) -> list[Tensor]:
        """Only the layers of `features_with_layers`."""
        return self.features_with_layers(images_BCHW)[1]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings [N, E], on the host; only if `text_embeddings` is not empty."""
        raise NotImplementedError

    def text_patches(self, images_BCHW: Tensor) -> Tensor:
        """Patches [B, L, E] to compare with texts by cosine; only if `has_text_patches`."""
        raise NotImplementedError


class TipsEncoder(Encoder):
    """TIPS, in evaluation mode on the device of its weights. The values trick gives the patches for texts."""

    embeddings = ("cls_web", "cls_synthetic")

    def __init__(
        self,
        image: ImageEncoder,
        text: TextEncoder | None = None,
        tokenizer: Tokenizer | None = None,
        image_size_px: int | None = None,
    ) -> None:
        self.image, self.text, self.tokenizer = image.eval(), text and text.eval(), tokenizer
        self.patch_size_px = image.config.patch_size_px
        self.image_size_px = image_size_px or image.config.image_size_px
        self.has_text_patches = text is not None and tokenizer is not None
        self.text_embeddings = self.embeddings if self.has_text_patches else ()
        self.preparation = tokenizer.source if tokenizer else b""

    @classmethod
    def of_model(cls, model: TipsModel, image_size_px: int | None = None) -> "TipsEncoder":
        """Encoder with both towers of a model."""
        return cls(model.image, model.text, model.tokenizer, image_size_px)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.image,) if self.text is None else (self.image, self.text)

    @torch.inference_mode()
    def features(self, images_BCHW: Tensor) -> Features:
        return _features(self.image(images_BCHW.to(device_of(self.image))))

    @torch.inference_mode()
    def features_with_layers(self, images_BCHW: Tensor) -> tuple[Features, list[Tensor]]:
        places = quarters(len(self.image.blocks))
        found, layers = features_with_layers(self.image, images_BCHW.to(device_of(self.image)), places)
        return _features(found), layers

    @torch.inference_mode()
    def text_patches(self, images_BCHW: Tensor) -> Tensor:
        return dense_features(self.image, images_BCHW.to(device_of(self.image)), "values").flatten(1, 2)

    @torch.inference_mode()
    def attention(self, images_BCHW: Tensor) -> Tensor:
        """Attention of both CLS tokens to the patches, [B, 2, L]; see `cls_attention`."""
        return cls_attention(self.image, images_BCHW.to(device_of(self.image)))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        assert self.text is not None and self.tokenizer is not None
        ids_NT = self.tokenizer(texts, self.text.config.max_tokens)
        device = device_of(self.text)
        parts = [self.text(ids_BT.to(device)).float().cpu() for ids_BT in ids_NT.split(TEXTS_AT_ONCE)]
        return F.normalize(torch.cat(parts), dim=-1)


def _features(found: ImageFeatures) -> Features:
    return Features(found.patches_BLD, {"cls_web": found.cls_web_BD, "cls_synthetic": found.cls_synthetic_BD})


def quarters(depth: int) -> list[int]:
    """Indices of the blocks that end each quarter of an encoder; repeated if there are fewer than four blocks."""
    return [max(round(depth * part / 4), 1) - 1 for part in (1, 2, 3, 4)]


def in_unit_range(images_BSS3: Tensor) -> Tensor:
    """uint8 images as an encoder takes them, [B, 3, S, S] in [0, 1]."""
    return images_BSS3.permute(0, 3, 1, 2).float() / 255


def device_of(network: nn.Module) -> torch.device:
    """Device of the network's first parameter."""
    return next(network.parameters()).device
