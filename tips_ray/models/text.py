"""TIPS text encoder. B texts, T tokens, D width; token id 0 is padding."""

import math

import torch
from torch import Tensor, nn

from tips_ray.config import TextEncoderConfig
from tips_ray.config.variants import text_sizes
from tips_ray.models.layers import Block, Group, feed_forward, initialize

PADDING_ID = 0


class TextEncoder(nn.Module):
    """Bidirectional pre-norm transformer, ReLU, fixed sinusoid positions, mean over valid tokens.

    transformers' Tipsv2TextModel gives the same numbers, but keeps q, k, v apart (three matrix products instead of one)
    and has no per-block call to compile or shard.

    Source: the released inference code of google-deepmind/tips.
    """

    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.width)
        self.blocks = nn.ModuleList(
            Block(
                config.width,
                config.num_heads,
                feed_forward("relu", config.width, config.ffn_hidden),
                norm_eps=1e-5,
                layer_scale=None,
            )
            for _ in range(config.depth)
        )
        self.norm = nn.LayerNorm(config.width, eps=1e-5)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        self.apply(initialize)

    def forward(self, token_ids_BT: Tensor, valid_BT: Tensor | None = None) -> Tensor:
        """Text embeddings [B, D], not normalised; a text without valid tokens gives zeros.

        Args:
            token_ids_BT: integer ids, 0 = padding; T may be shorter than `max_tokens`.
            valid_BT: boolean, True = token counts; default: id is not 0.

        Raises:
            ValueError: an id lies outside the vocabulary (checked on CPU tensors only), or T is too long.
        """
        self._check(token_ids_BT)
        valid_BT = token_ids_BT != PADDING_ID if valid_BT is None else valid_BT
        batch, length = token_ids_BT.shape
        embedded_BTD = self.token_embedding(token_ids_BT) * math.sqrt(self.config.width)
        tokens_PD = (embedded_BTD + self._positions(embedded_BTD)).flatten(0, 1)
        # A text without tokens attends to everything instead of nothing; the mean below ignores it anyway.
        group = Group(batch, length, valid_BT | ~valid_BT.any(dim=1, keepdim=True))
        for block in self.blocks:
            tokens_PD = block(tokens_PD, [group])
        return _masked_mean(self.norm(tokens_PD).view(batch, length, -1), valid_BT)

    def _positions(self, like_BTD: Tensor) -> Tensor:
        """Sinusoid positions [T, D], [sin | cos] halves, timescales 1 to 10,000."""
        length, half = like_BTD.shape[1], self.config.width // 2
        step = math.log(10_000) / (half - 1)
        rate_h = torch.exp(torch.arange(half, dtype=torch.float32, device=like_BTD.device) * -step)
        angle_Th = torch.arange(length, dtype=torch.float32, device=like_BTD.device)[:, None] * rate_h
        return torch.cat([angle_Th.sin(), angle_Th.cos()], dim=1).to(like_BTD.dtype)

    def _check(self, token_ids_BT: Tensor) -> None:
        shape, config = tuple(token_ids_BT.shape), self.config
        if token_ids_BT.dim() != 2 or token_ids_BT.is_floating_point():
            raise ValueError(f"token_ids_BT {shape} {token_ids_BT.dtype} must be integers of shape (batch, tokens)")
        if not 1 <= shape[1] <= config.max_tokens:
            raise ValueError(f"token_ids_BT {shape}: tokens ({shape[1]}) must be between 1 and {config.max_tokens}")
        if token_ids_BT.device.type == "cpu" and token_ids_BT.numel():
            low, high = (value.item() for value in token_ids_BT.aminmax())
            if low < 0 or high >= config.vocab_size:
                raise ValueError(
                    f"token_ids_BT holds ids {low} to {high}; the vocabulary has {config.vocab_size} entries, "
                    f"so ids must lie in [0, {config.vocab_size - 1}]"
                )


def text_encoder(variant: str, **sizes) -> TextEncoder:
    """Randomly initialised text encoder beside `variant` (S B L So400m g); `sizes` replaces fields of the config."""
    return TextEncoder(TextEncoderConfig(**{**text_sizes(variant), **sizes}))


def _masked_mean(tokens_BTD: Tensor, valid_BT: Tensor) -> Tensor:
    summed_BD = tokens_BTD.masked_fill(~valid_BT[..., None], 0).sum(dim=1)
    return summed_BD / valid_BT.sum(dim=1, keepdim=True).clamp(min=1)
