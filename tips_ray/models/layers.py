"""Transformer block over packed tokens. P packed tokens (all samples of all groups, in order), D width, H heads.

Several groups of equally long samples (crops of two sizes, say) share one pass: norms and linears see one [P, D]
matrix, only attention works group by group. The numbers are those of separate passes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from timm.layers.layer_scale import LayerScale
from timm.layers.mlp import Mlp, SwiGLUPacked
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray import keyed


@dataclass(frozen=True)
class Group:
    """Samples of equal length, contiguous among the packed tokens."""

    samples: int
    length: int
    key_mask_BT: Tensor | None = None
    """True where a token may be attended to; None: everywhere."""


@runtime_checkable
class HasOwnParameters(Protocol):
    """A module with parameters outside its children."""

    def reset_own_parameters(self) -> None: ...


class Attention(nn.Module):
    """Multi-head self-attention inside each sample. timm's attention takes one length only, no packed groups."""

    def __init__(self, width: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, tokens_PD: Tensor, groups: Sequence[Group]) -> Tensor:
        counts = [group.samples * group.length for group in groups]
        mixed = [
            self._mix(qkv_P, group) for qkv_P, group in zip(self.qkv(tokens_PD).split(counts), groups, strict=True)
        ]
        return self.proj(torch.cat(mixed) if len(mixed) > 1 else mixed[0])

    def values(self, tokens_PD: Tensor) -> Tensor:
        """Each token's own value through the output projection, without mixing: the values trick."""
        return self.proj(self.qkv(tokens_PD).chunk(3, dim=-1)[2])

    def weights(self, tokens_PD: Tensor, group: Group) -> Tensor:
        """How much each token takes from each, [B, heads, T, T]; rows sum to 1. All tokens are one group, no mask."""
        qkv = self.qkv(tokens_PD).view(group.samples, group.length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        return (qkv[0] @ qkv[1].mT * qkv.shape[-1] ** -0.5).softmax(dim=-1)

    def _mix(self, qkv_P: Tensor, group: Group) -> Tensor:
        qkv = qkv_P.view(group.samples, group.length, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        mask = None if group.key_mask_BT is None else group.key_mask_BT[:, None, None, :]
        mixed_BHTd = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=mask)
        return mixed_BHTd.transpose(1, 2).reshape(group.samples * group.length, -1)


class Block(nn.Module):
    """Pre-norm attention and feed-forward, each with LayerScale (images) or without (texts)."""

    def __init__(self, width: int, num_heads: int, ffn: nn.Module, norm_eps: float, layer_scale: float | None) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=norm_eps)
        self.attn = Attention(width, num_heads)
        self.ls1 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)
        self.norm2 = nn.LayerNorm(width, eps=norm_eps)
        self.mlp = ffn
        self.ls2 = nn.Identity() if layer_scale is None else LayerScale(width, layer_scale)

    def forward(self, tokens_PD: Tensor, groups: Sequence[Group], kept: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Apply the block; `kept` are factors [P, 1] of both branches, 0 where drop-path removes the branch."""
        attended_PD = self.ls1(self.attn(self.norm1(tokens_PD), groups))
        tokens_PD = tokens_PD + (attended_PD if kept is None else attended_PD * kept[0])
        fed_PD = self.ls2(self.mlp(self.norm2(tokens_PD)))
        return tokens_PD + (fed_PD if kept is None else fed_PD * kept[1])

    def forward_values(self, tokens_PD: Tensor) -> Tensor:
        """The block with attention's mixing left out (TIPSv2's values trick for dense features)."""
        tokens_PD = tokens_PD + self.ls1(self.attn.values(self.norm1(tokens_PD)))
        return tokens_PD + self.ls2(self.mlp(self.norm2(tokens_PD)))


def feed_forward(kind: str, width: int, hidden: int, gelu: str = "tanh") -> nn.Module:
    """timm's MLP (`mlp`: GELU, `relu`) or packed SwiGLU (`swiglu`: gate first, SiLU); `hidden` counts after gating."""
    if kind == "swiglu":
        return SwiGLUPacked(width, 2 * hidden)
    act_layer = nn.ReLU if kind == "relu" else lambda: nn.GELU(approximate="tanh" if gelu == "tanh" else "none")
    return Mlp(width, hidden, act_layer=act_layer)  # pyright: ignore[reportArgumentType]


def drop_path_factors(
    key_S: Tensor,
    lengths_S: Tensor,
    rate: float,
    depth: int,
    tokens: int | None = None,
    may_drop_S: Tensor | None = None,
) -> list[tuple[Tensor, Tensor]]:
    """Factors [P, 1] of the two branches of every block: 0, or 1/(1 - rate) where the branch stays.

    They are keyed by sample, so that a sample drops the same branches in any batch, on any worker and in a repeated
    pass; dropping a part of the batch (DINOv2) would depend on the batch's composition. `tokens` is P, the sum of the
    lengths; without it the host waits for the device to know it. Samples where `may_drop_S` is False keep all branches.
    """

    def factor(salt: int) -> Tensor:
        kept_S = (keyed.uniform(key_S, salt) >= rate).float() / (1 - rate)
        kept_S = kept_S if may_drop_S is None else kept_S.where(may_drop_S, 1)
        return kept_S.repeat_interleave(lengths_S, output_size=tokens)[:, None]

    return [(factor(2 * block), factor(2 * block + 1)) for block in range(depth)]


def initialize(module: nn.Module) -> None:
    """Initialise the module's own parameters, not its children's; our modules have `reset_own_parameters`.

    (D) Xavier uniform as in Flax's ViT, zero biases, norms and gains at their defaults. Xavier follows the width; a
    fixed 0.02 leaves narrow models with almost no signal. The patch embedding starts as in Flax (LeCun normal) with
    pixels moved to [-1, 1] by weight and bias; from [0, 1], brightness would make all tokens nearly equal. Rows of the
    token embedding have unit length after multiplication by sqrt(D).
    """
    if isinstance(module, (nn.LayerNorm, LayerScale)):
        module.reset_parameters()
    elif isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.normal_(module.weight, std=2 * module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            module.bias.data.copy_(-module.weight.data.sum(dim=(1, 2, 3)) / 2)
    elif isinstance(module, nn.Embedding):
        nn.init.normal_(module.weight, std=module.embedding_dim**-0.5)
    elif isinstance(module, HasOwnParameters):
        module.reset_own_parameters()
