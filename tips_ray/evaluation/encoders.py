"""What every frozen encoder gives to the tasks, and TIPS as one. B images, L patches, D width, E of embeddings."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.models import ImageEncoder, TextEncoder, TipsModel, Tokenizer, dense_features, layer_features

TEXTS_AT_ONCE = 256


class Features(NamedTuple):
    """Of images of one size."""

    patches_BLD: Tensor
    """Row-major on a square grid."""
    embeddings: dict[str, Tensor]
    """[B, E] by name; none of them is L2-normalised."""


class Encoder(ABC):
    """A frozen encoder: square RGB images in [0, 1] in, features out, without gradient.

    An encoder's own mean and standard deviation are its own affair.
    """

    image_size_px: int
    """Side of the images that it takes."""
    patch_size_px: int
    embeddings: tuple[str, ...]
    """Names of what `features` gives beside patches: `cls_web` and `cls_synthetic`; `cls`, `pooled` of others."""
    text_embeddings: tuple[str, ...] = ()
    """Those of them that meet texts; empty where there is no text tower, or no vocabulary for it."""
    has_text_patches: bool = False
    """Whether there are patches that meet texts."""
    preparation: bytes = b""
    """What is done to images and texts ahead of the weights, which decides the numbers with them: the vocabulary."""
    checkpoint_uri: str | None = None
    """Of a run's, that which was the newest whole one; others follow while it trains."""

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
        """All that has weights."""

    @abstractmethod
    def features(self, images_BCHW: Tensor) -> Features: ...

    def layers(self, images_BCHW: Tensor) -> list[Tensor]:
        """Patches [B, L, D] after a quarter, a half, three quarters and all of the blocks, before any final norm."""
        raise NotImplementedError

    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit-norm embeddings [N, E], on the host; only where `text_embeddings` names any."""
        raise NotImplementedError

    def text_patches(self, images_BCHW: Tensor) -> Tensor:
        """[B, L, E], to be compared with texts by cosine; only where `has_text_patches`."""
        raise NotImplementedError


class TipsEncoder(Encoder):
    """Ours, in evaluation mode on the device of its weights. Patches that meet texts come by the values trick."""

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
        """Both towers of a model."""
        return cls(model.image, model.text, model.tokenizer, image_size_px)

    @property
    def networks(self) -> tuple[nn.Module, ...]:
        return (self.image,) if self.text is None else (self.image, self.text)

    @torch.inference_mode()
    def features(self, images_BCHW: Tensor) -> Features:
        found = self.image(images_BCHW.to(device_of(self.image)))
        return Features(found.patches_BLD, {"cls_web": found.cls_web_BD, "cls_synthetic": found.cls_synthetic_BD})

    @torch.inference_mode()
    def layers(self, images_BCHW: Tensor) -> list[Tensor]:
        return layer_features(self.image, images_BCHW.to(device_of(self.image)), quarters(len(self.image.blocks)))

    @torch.inference_mode()
    def text_patches(self, images_BCHW: Tensor) -> Tensor:
        return dense_features(self.image, images_BCHW.to(device_of(self.image)), "values").flatten(1, 2)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Tensor:
        assert self.text is not None and self.tokenizer is not None
        ids_NT = self.tokenizer(texts, self.text.config.max_tokens)
        device = device_of(self.text)
        parts = [self.text(ids_BT.to(device)).float().cpu() for ids_BT in ids_NT.split(TEXTS_AT_ONCE)]
        return F.normalize(torch.cat(parts), dim=-1)


def quarters(depth: int) -> list[int]:
    """Places of the blocks that end each quarter of an encoder; shallow ones have some twice."""
    return [max(round(depth * part / 4), 1) - 1 for part in (1, 2, 3, 4)]


def in_unit_range(images_BSS3: Tensor) -> Tensor:
    """uint8 images as an encoder takes them, [B, 3, S, S] in [0, 1]."""
    return images_BSS3.permute(0, 3, 1, 2).float() / 255


def device_of(network: nn.Module) -> torch.device:
    """Of its first parameter."""
    return next(network.parameters()).device
