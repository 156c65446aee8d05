"""A data set as a frozen encoder sees it, encoded when a task first asks. N images, S side, L patches, D width."""

from collections.abc import Callable
from functools import cached_property

import torch
from torch import Tensor

from tips_ray.evaluation.datasets import Dataset, Examples
from tips_ray.evaluation.encoders import Encoder, Features


def features_of(encoder: Encoder, images_NSS3: Tensor, batch_images: int = 64) -> Features:
    """Of uint8 RGB images, fp32 on the host."""
    parts = _by_batch(encoder.features, images_NSS3, batch_images)
    embeddings = {
        name: torch.cat([part.embeddings[name].float().cpu() for part in parts]) for name in encoder.embeddings
    }
    return Features(torch.cat([part.patches_BLD.float().cpu() for part in parts]), embeddings)


def text_patches_of(encoder: Encoder, images_NSS3: Tensor, batch_images: int = 64) -> Tensor:
    """[N, L, E], fp32 on the host."""
    parts = _by_batch(encoder.text_patches, images_NSS3, batch_images)
    return torch.cat([part.float().cpu() for part in parts])


def layers_of(encoder: Encoder, images_NSS3: Tensor, batch_images: int = 64) -> list[Tensor]:
    """Four tensors [N, L, D], fp32 on the host."""
    parts = _by_batch(encoder.layers, images_NSS3, batch_images)
    return [torch.cat([part.float().cpu() for part in of_layer]) for of_layer in zip(*parts, strict=True)]


class FrozenData:
    """All features stay in memory: N * L * D * 4 bytes."""

    def __init__(self, encoder: Encoder, dataset: Dataset, batch_images: int) -> None:
        self.encoder, self.dataset, self.batch_images = encoder, dataset, batch_images

    @cached_property
    def train(self) -> Features:
        assert self.dataset.train is not None
        return self._features(self.dataset.train)

    @cached_property
    def test(self) -> Features:
        return self._features(self.dataset.test)

    @cached_property
    def test_text_patches(self) -> Tensor:
        return text_patches_of(self.encoder, self.dataset.test.images_NSS3, self.batch_images)

    @cached_property
    def layers(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of training and test images."""
        assert self.dataset.train is not None
        return self._layers(self.dataset.train), self._layers(self.dataset.test)

    def _layers(self, examples: Examples) -> list[Tensor]:
        return layers_of(self.encoder, examples.images_NSS3, self.batch_images)

    def _features(self, examples: Examples) -> Features:
        return features_of(self.encoder, examples.images_NSS3, self.batch_images)


def _by_batch(encode: Callable, images_NSS3: Tensor, batch_images: int) -> list:
    batches = images_NSS3.split(batch_images)
    return [encode(images_bSS3.permute(0, 3, 1, 2).float() / 255) for images_bSS3 in batches]
