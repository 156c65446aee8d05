"""Surface normals by a DPT decoder. N images, L patches, D width, H W pixels."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import NormalsConfig
from tips_ray.evaluation.dpt import LayerExamples, decoded, trained_decoder
from tips_ray.evaluation.metrics import normals_rmse_degrees


class Normals(NamedTuple):
    """Scores and predictions of the decoder on the test images."""

    scores: dict[str, float]
    predictions: list[Tensor]
    """Predicted unit vectors, [3, H, W] per image."""
    degrees: list[float]
    """Root mean squared angle of each image."""


def dpt_normals(train: LayerExamples, test: LayerExamples, config: NormalsConfig, seed: int = 0) -> Normals:
    """`rmse_degrees`: root mean squared angle per image, averaged over images.

    The loss is 1 - cosine, over pixels with a normal (D; Probe3D also predicts its uncertainty).

    Raises:
        ValueError: a normal has a length other than 1 and 0, or an image has no normals.
    """
    for examples in (train, test):
        for normals_3HW in examples.targets:  # raises for bad targets before any training
            _degrees(normals_3HW, normals_3HW)
    side = config.train_size_px
    target_N3HW = torch.cat([F.interpolate(one[None], (side, side), mode="nearest-exact") for one in train.targets])

    def loss(maps_b3hw: Tensor, batch_b: Tensor) -> Tensor:
        found = F.interpolate(maps_b3hw, (side, side), mode="bilinear", align_corners=False)
        is_known = target_N3HW[batch_b].any(dim=1)
        cosine = F.cosine_similarity(found, target_N3HW[batch_b], dim=1)
        return ((1 - cosine) * is_known).sum() / is_known.sum().clamp(min=1)

    places_N = torch.arange(len(train.targets))
    decoder = trained_decoder(train.layers, places_N, 3, loss, config.decoder, seed)
    predictions = [
        normals_of(decoded(decoder, test.layers, place), one.shape[1:]) for place, one in enumerate(test.targets)
    ]
    degrees = [_degrees(*pair) for pair in zip(predictions, test.targets, strict=True)]
    return Normals({"rmse_degrees": sum(degrees) / len(degrees)}, predictions, degrees)


def normals_of(maps_3hw: Tensor, size: Sequence[int]) -> Tensor:
    """Unit vectors [3, H, W] from maps of the decoder."""
    resized = F.interpolate(maps_3hw[None], tuple(size), mode="bilinear", align_corners=False)[0]
    return F.normalize(resized, dim=0)


def _degrees(prediction_3HW: Tensor, target_3HW: Tensor) -> float:
    return normals_rmse_degrees(prediction_3HW[None], target_3HW[None], target_3HW[None].any(dim=1))
