"""Monocular depth by bins: the published linear probe on [patch, CLS], and a DPT decoder. N images, L patches.

D width, K bins, H W pixels, R learning rates, b images of a batch. `depth.py` has a closed-form probe.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from tips_ray.config.evaluation import BinsConfig, DepthConfig, DptDepthConfig
from tips_ray.evaluation.dense import DenseExamples, squashed, upsampled
from tips_ray.evaluation.dpt import LayerExamples, decoded, trained_decoder
from tips_ray.evaluation.metrics import depth_rmse
from tips_ray.evaluation.probe import LEARNING_RATE, LinearProbes, split_places, trained_probes

UPSAMPLING, SMALLEST_LOGIT, EPSILON, MEAN_WEIGHT, GRADIENT_WEIGHT = 4, 0.1, 0.001, 0.15, 0.5
STRIDES = (1, 2, 4, 6)
SMALLEST_SQUARE = 1e-12
"""Lower bound of the value under the root in `sig_loss`; the root's gradient is infinite at 0."""


class Depth(NamedTuple):
    """Scores and predictions of the chosen probe on the test images."""

    scores: dict[str, float]
    predictions_m: list[Tensor]


EIGEN_SIZE, EIGEN_ROWS, EIGEN_COLUMNS = (480, 640), slice(45, 471), slice(41, 601)
"""Size of NYUv2's maps, and the part of them that Eigen et al. (arXiv:1406.2283) score."""


def linear_depth(
    train: DenseExamples,
    test: DenseExamples,
    config: DepthConfig,
    seed: int = 0,
    mirrored: DenseExamples | None = None,
) -> Depth:
    """`rmse_m` of the learning rate that is best on held-out training images.

    DINOv2 begins with 100 steps of SigLoss with its mean alone; we do not, as that gradient is NaN where the mean is 0.

    Args:
        train: patches with CLS beside them; targets in metres, 0 where there is none.
        test: like `train`.
        config: bins and probes; targets beyond `max_depth_m` do not count.
        seed: seed of the probes' initial weights and batches.
        mirrored: the mirror images of `test`; predictions are then the mean over both.

    Raises:
        ValueError: a target is negative or not finite, an image has none, or every probe diverged.

    Source: the depth evaluation of DINOv2; AdaBins, arXiv:2011.14141.
    """
    train, test = (
        examples._replace(targets=_in_range(examples.targets, config.max_depth_m)) for examples in (train, test)
    )
    target_NHW = squashed(train.targets, config.train_size_px)
    learned_n, held_out_m = split_places(len(train.patches_NLD), config.probe)

    def loss(logits_RbLK: Tensor, batch_b: Tensor) -> Tensor:
        parts = [depth_of(logits_bLK, target_NHW.shape[-2:], config) for logits_bLK in logits_RbLK]
        return torch.stack([_loss(part_m, target_NHW[batch_b]) for part_m in parts])

    probes = trained_probes(train.rows, learned_n, config.num_bins, loss, config.probe, seed)
    held_out_R = [
        _rmse(
            _predicted(probes, probe, train, held_out_m, config),
            [train.targets[place] for place in held_out_m.tolist()],
        )
        for probe in range(len(config.probe.learning_rates))
    ]
    if min(held_out_R) == float("inf"):
        raise ValueError(f"the depth probe diverged at every learning rate ({config.probe.learning_rates}); lower them")
    chosen = held_out_R.index(min(held_out_R))
    places_N = torch.arange(len(test.targets))
    predictions_m = _predicted(probes, chosen, test, places_N, config)
    if mirrored is not None:
        turned = _predicted(probes, chosen, mirrored, places_N, config)
        predictions_m = [(one + other.flip(-1)) / 2 for one, other in zip(predictions_m, turned, strict=True)]
    scores = {"rmse_m": _rmse(predictions_m, test.targets), LEARNING_RATE: config.probe.learning_rates[chosen]}
    return Depth(scores, predictions_m)


def dpt_depth(train: LayerExamples, test: LayerExamples, config: DptDepthConfig, seed: int = 0) -> Depth:
    """`rmse_m` of a DPT decoder, trained at one learning rate on all training images.

    Args:
        train: layers; targets in metres, 0 where there is none.
        test: like `train`.
        config: bins and decoder; targets beyond `max_depth_m` do not count.
        seed: seed of the decoder's initial weights and batches.

    Raises:
        ValueError: a target is negative or not finite, an image has none, or the decoder diverged.
    """
    train, test = (one._replace(targets=_in_range(one.targets, config.max_depth_m)) for one in (train, test))
    target_NHW = squashed(train.targets, config.train_size_px)

    def loss(maps_bKhw: Tensor, batch_b: Tensor) -> Tensor:
        return _loss(depth_of_maps(maps_bKhw, target_NHW.shape[-2:], config), target_NHW[batch_b])

    places_N = torch.arange(len(train.targets))
    decoder = trained_decoder(train.layers, places_N, config.num_bins, loss, config.decoder, seed)
    predictions_m = [
        depth_of_maps(decoded(decoder, test.layers, place)[None], target_m.shape, config)[0]
        for place, target_m in enumerate(test.targets)
    ]
    score = _rmse(predictions_m, test.targets)
    if score == float("inf"):
        raise ValueError(f"the depth decoder diverged; lower decoder.learning_rate ({config.decoder.learning_rate:g})")
    return Depth({"rmse_m": score}, predictions_m)


def judged_depth(targets_m: Sequence[Tensor], config: BinsConfig) -> list[Tensor]:
    """Depth of the test images, 0 where pixels lie outside of `eval_crop`.

    Raises:
        ValueError: a map for the Eigen crop is not of 480 x 640 pixels.
    """
    if config.eval_crop == "none":
        return list(targets_m)
    found = []
    for target_m in targets_m:
        if tuple(target_m.shape) != EIGEN_SIZE:
            raise ValueError(f"eval_crop=eigen is for maps of 480 x 640 pixels, and one has {tuple(target_m.shape)}")
        kept = torch.zeros_like(target_m)
        kept[EIGEN_ROWS, EIGEN_COLUMNS] = target_m[EIGEN_ROWS, EIGEN_COLUMNS]
        found.append(kept)
    return found


def depth_of(logits_NLK: Tensor, size: Sequence[int], config: BinsConfig) -> Tensor:
    """Metres, [N, H, W], from logits of patches.

    As in DINOv2, values are upsampled four times, then to `size` as depth; DINOv2's linear map follows the first step.
    """
    side = UPSAMPLING * round(logits_NLK.shape[1] ** 0.5)
    return depth_of_maps(upsampled(logits_NLK, (side, side)), size, config)


def depth_of_maps(logits_NKhw: Tensor, size: Sequence[int], config: BinsConfig) -> Tensor:
    """Metres, [N, H, W]: the mean of the bins' depths, each weighted by its relu(logit) + 0.1."""
    weights_NKhw = logits_NKhw.relu() + SMALLEST_LOGIT
    bins_K = torch.linspace(config.min_depth_m, config.max_depth_m, config.num_bins)
    depth_Nhw = torch.einsum("nkhw,k->nhw", weights_NKhw, bins_K) / weights_NKhw.sum(dim=1)
    return F.interpolate(depth_Nhw[:, None], tuple(size), mode="bilinear", align_corners=False)[:, 0]


def sig_loss(prediction_m: Tensor, target_m: Tensor) -> Tensor:
    """Root of variance + 0.15 mean^2 of the log ratio over all pixels with a target, a scalar.

    Source: AdaBins, arXiv:2011.14141, equation 4, with DINOv2's numbers.
    """
    ratio_P = _log_ratio(prediction_m, target_m)[target_m > 0]
    pixels = max(len(ratio_P), 1)
    mean = ratio_P.sum() / pixels
    variance = (ratio_P - mean).square().sum() / pixels
    return (variance + MEAN_WEIGHT * mean.square()).clamp(min=SMALLEST_SQUARE).sqrt()


def gradient_loss(prediction_m: Tensor, target_m: Tensor) -> Tensor:
    """Mean absolute slope of the log ratio over pixels two apart, summed over four scales, a scalar.

    DINOv2's code takes its scales along batch and channels; here they are along height and width, as in MegaDepth
    (arXiv:1804.00607, equation 3).
    """
    total = prediction_m.new_zeros(())
    for stride in STRIDES:
        coarse, target = prediction_m[:, ::stride, ::stride], target_m[:, ::stride, ::stride]
        valid, ratio = target > 0, _log_ratio(coarse, target)
        down = (ratio[:, :-2] - ratio[:, 2:]).abs() * (valid[:, :-2] & valid[:, 2:])
        across = (ratio[:, :, :-2] - ratio[:, :, 2:]).abs() * (valid[:, :, :-2] & valid[:, :, 2:])
        total = total + (down.sum() + across.sum()) / valid.sum().clamp(min=1)
    return total


def _loss(prediction_m: Tensor, target_m: Tensor) -> Tensor:
    return sig_loss(prediction_m, target_m) + GRADIENT_WEIGHT * gradient_loss(prediction_m, target_m)


def _log_ratio(prediction_m: Tensor, target_m: Tensor) -> Tensor:
    return (prediction_m + EPSILON).log() - (target_m + EPSILON).log()


def _in_range(targets_m: Sequence[Tensor], max_depth_m: float) -> list[Tensor]:
    """Targets with those beyond `max_depth_m` set to 0; `depth_rmse` raises for values that are no depth."""
    kept = [target_m.float() for target_m in targets_m]
    for target_m in kept:
        depth_rmse(torch.zeros_like(target_m)[None], target_m[None])
    # most maps have nothing to take out, and a copy of each could fill the memory
    return [one if one.max() <= max_depth_m else one.masked_fill(one > max_depth_m, 0) for one in kept]


def _predicted(
    probes: LinearProbes, probe: int, examples: DenseExamples, places_n: Tensor, config: DepthConfig
) -> list[Tensor]:
    """Predictions, made one image at a time, which bounds memory."""
    return [
        depth_of(probes(examples.rows(torch.tensor([place])))[probe], examples.targets[place].shape, config)[0]
        for place in places_n.tolist()
    ]


def _rmse(predictions_m: Sequence[Tensor], targets_m: Sequence[Tensor]) -> float:
    """Mean over images, which may be of different sizes; infinite for a probe that diverged."""
    if not all(prediction_m.isfinite().all() for prediction_m in predictions_m):
        return float("inf")
    pairs = list(zip(predictions_m, targets_m, strict=True))
    return sum(depth_rmse(one[None], target[None]) for one, target in pairs) / len(pairs)
