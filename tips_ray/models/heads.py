"""Prototype head of the self-supervised losses. R rows (CLS tokens or patches), D width, K prototypes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.config import PrototypeHeadConfig
from tips_ray.models.layers import at_least_fp32, initialize


class PrototypeHead(nn.Module):
    """Three-layer MLP, L2 norm, then cosines with K unit-norm prototypes.

    The paper says "projection head" and 32k prototypes; the shape is DINOv2's (our decision). A weight-normed linear
    layer with gain fixed at one is a cosine, so `forward` normalises the prototypes.
    """

    def __init__(self, width: int, config: PrototypeHeadConfig, has_fp32_scores: bool = False) -> None:
        """
        Args:
            width: of the features.
            config: sizes.
            has_fp32_scores: also where the network computes in bf16, in which cosines near 1 are 1/256 apart: a tenth
                of a nat at a temperature of 0.04. It is for few rows, because the scores take twice the memory.
        """
        super().__init__()
        self.has_fp32_scores = has_fp32_scores
        self.mlp = nn.Sequential(
            nn.Linear(width, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.hidden),
            nn.GELU(),
            nn.Linear(config.hidden, config.bottleneck),
        )
        self.prototypes = nn.Parameter(torch.empty(config.num_prototypes, config.bottleneck))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.apply(initialize)

    def reset_own_parameters(self) -> None:
        nn.init.trunc_normal_(self.prototypes, std=0.02)

    def forward(self, features_RD: Tensor) -> Tensor:
        """Scores [R, K], cosines in [-1, 1]; fp32 or better with `has_fp32_scores`, else in the features' type."""
        bottleneck_RD, prototypes_KD = self.mlp(features_RD), self.prototypes
        if self.has_fp32_scores:
            bottleneck_RD, prototypes_KD = at_least_fp32(bottleneck_RD), at_least_fp32(prototypes_KD)
        return F.linear(F.normalize(bottleneck_RD, dim=-1), F.normalize(prototypes_KD, dim=-1))
