"""Prototype head of the self-supervised losses. R rows (CLS tokens or patches), D width, K prototypes."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.config import PrototypeHeadConfig
from tips_ray.models.layers import initialize


class PrototypeHead(nn.Module):
    """Three-layer MLP, L2 norm, then cosines with K unit-norm prototypes.

    The paper says "projection head" and 32k prototypes; the shape is DINOv2's (our decision). A weight-normed linear
    layer with gain fixed at one is a cosine, so `forward` normalises the prototypes.
    """

    def __init__(self, width: int, config: PrototypeHeadConfig) -> None:
        super().__init__()
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
        """Scores [R, K], cosines in [-1, 1]."""
        unit_RD = F.normalize(self.mlp(features_RD), dim=-1)
        return F.linear(unit_RD, F.normalize(self.prototypes, dim=-1))
