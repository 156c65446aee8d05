"""Prototype head of the self-supervised losses. R rows (CLS tokens or patches), D width, K prototypes."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.config import PrototypeHeadConfig
from tips_ray.models.layers import initialize
from tips_ray.precision import at_least_fp32

ROWS_AT_ONCE = 1024
"""Rows of prototype scores that `PrototypeScores.chunks` makes at a time."""


class PrototypeScores(NamedTuple):
    """Scores [R, K] of rows, as the two matrices whose product they are: the whole of it would fill the memory."""

    unit_RD: Tensor
    """Bottleneck features, unit norm; D is the bottleneck's width."""
    prototypes_KD: Tensor
    """Unit norm."""

    def chunks(self) -> Iterator[Tensor]:
        """Cosines in [-1, 1], some rows at a time."""
        return (F.linear(unit_CD, self.prototypes_KD) for unit_CD in self.unit_RD.split(ROWS_AT_ONCE))


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

    def forward(self, features_RD: Tensor) -> PrototypeScores:
        """Scores [R, K] as rows and prototypes; copies, which outlive FSDP's gathered weights.

        They are in fp32 or better with `has_fp32_scores`, else in the features' type.
        """
        bottleneck_RD, prototypes_KD = self.mlp(features_RD), self.prototypes
        if self.has_fp32_scores:
            bottleneck_RD, prototypes_KD = at_least_fp32(bottleneck_RD), at_least_fp32(prototypes_KD)
        unit_RD = _Unit.apply(bottleneck_RD)
        # Autocast computes rows in half precision and leaves weights in fp32.
        return PrototypeScores(unit_RD, _Unit.apply(prototypes_KD).to(unit_RD.dtype))


class _Unit(torch.autograd.Function):
    """`F.normalize` of rows, computed in float32 or better, with three passes over memory backward instead of ten."""

    @staticmethod
    def forward(ctx: Any, rows_RD: Tensor) -> Tensor:
        precise = torch.promote_types(rows_RD.dtype, torch.float32)
        norm_R1 = torch.linalg.vector_norm(rows_RD, dim=-1, keepdim=True, dtype=precise).clamp_(min=1e-12)
        unit_RD = (rows_RD / norm_R1).to(rows_RD.dtype)
        ctx.save_for_backward(unit_RD, norm_R1)
        return unit_RD

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        """(g - (g . u) u) / |x|"""
        unit_RD, norm_R1 = ctx.saved_tensors
        grad_RD = grad_outputs[0].to(norm_R1.dtype)
        along_R1 = torch.linalg.vecdot(grad_RD, unit_RD.to(norm_R1.dtype))[:, None]
        return torch.addcmul(grad_RD, unit_RD, along_R1, value=-1).div_(norm_R1).to(unit_RD.dtype)
