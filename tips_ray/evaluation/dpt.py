"""DPT decoder on four layers of a frozen encoder. N images, b of a batch, L patches on a square grid, C channels.

D width, g patches along one side. Source: Vision Transformers for Dense Prediction, arXiv:2103.13413; as a probe of
frozen encoders, Probe3D, arXiv:2404.08636.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.config.evaluation import DecoderConfig
from tips_ray.evaluation.probe import batches, rate_factor

SCALES = (4.0, 2.0, 1.0, 0.5)
"""Sizes of the maps made from the four layers, relative to the grid; first layer first."""
Loss = Callable[[Tensor, Tensor], Tensor]
"""(maps [b, C, 8 g, 8 g], positions of the b images [b]) -> scalar."""


class LayerExamples(NamedTuple):
    """Layer features of images, and their target maps."""

    layers: Sequence[Tensor]
    """Four tensors [N, L, D]."""
    targets: Sequence[Tensor]
    """One map per image: metres [H, W] or normals [3, H, W]; 0 where there is none."""


class Decoder(nn.Module):
    """Layers [b, L, D] -> maps [b, C, 8 g, 8 g]. BatchNorm comes first (D), because encoders differ in scale."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=False) for _ in SCALES)
        self.narrowed = nn.ModuleList(nn.Conv2d(width, hidden, 1) for _ in SCALES)
        self.fused = nn.ModuleList(_Fusion(hidden) for _ in SCALES)
        self.head = nn.Sequential(nn.Conv2d(hidden, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, outputs, 1))

    def forward(self, layers: Sequence[Tensor]) -> Tensor:
        grid = round(layers[0].shape[1] ** 0.5)
        found = None
        for place in reversed(range(len(SCALES))):  # the deepest layer is the coarsest map
            square = self.narrowed[place](self.norms[place](layers[place].mT.unflatten(2, (grid, grid))))
            side = max(round(SCALES[place] * grid), 1)
            found = self.fused[place](_resized(square, side), found)
        assert found is not None
        return self.head(_resized(found, 8 * grid))


class _Fusion(nn.Module):
    """Merges a finer map with the result of the coarser ones, resized to the finer one."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.own, self.joint = _Residual(hidden), _Residual(hidden)

    def forward(self, fine: Tensor, coarse: Tensor | None) -> Tensor:
        joined = self.own(fine) if coarse is None else self.own(fine) + _resized(coarse, fine.shape[-1])
        return self.joint(joined)


class _Residual(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(hidden, hidden, 3, padding=1),
        )

    def forward(self, maps: Tensor) -> Tensor:
        return maps + self.layers(maps)


def trained_decoder(
    layers: Sequence[Tensor], places_n: Tensor, outputs: int, loss: Loss, config: DecoderConfig, seed: int
) -> Decoder:
    """A decoder with `outputs` channels trained on the images `places_n`; evaluation mode.

    Args:
        layers: layer features of all images, four tensors [N, L, D].
        places_n: positions of the images to learn from.
        outputs: number of channels.
        loss: see `Loss`.
        config: the decoder and its training.
        seed: seed of the initial weights and batches.
    """
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        decoder = Decoder(layers[0].shape[-1], config.hidden, outputs)
    if config.epochs is not None:
        config = config.model_copy(update={"steps": max(config.epochs * len(places_n) // config.batch_images, 1)})
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=0.0, weight_decay=config.weight_decay)
    for step, batch_b in enumerate(batches(places_n, config, torch.Generator().manual_seed(seed))):
        optimizer.param_groups[0]["lr"] = config.learning_rate * rate_factor(step, config)
        loss(decoder([layer_NLD[batch_b].float() for layer_NLD in layers]), batch_b).backward()
        optimizer.step()
        optimizer.zero_grad()
    return decoder.requires_grad_(False).eval()


def decoded(decoder: Decoder, layers: Sequence[Tensor], place: int) -> Tensor:
    """Maps of one image, [C, 8 g, 8 g]."""
    return decoder([layer_NLD[place : place + 1].float() for layer_NLD in layers])[0]


def _resized(maps: Tensor, side: int) -> Tensor:
    return F.interpolate(maps, (side, side), mode="bilinear", align_corners=False)
