"""TIPS text encoder. B texts, T tokens, S short texts, P packed tokens, D width; token id 0 is padding."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tips_ray.batch import short_length
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

    def forward(
        self, token_ids_BT: Tensor, valid_BT: Tensor | None = None, short_texts_S: Tensor | None = None
    ) -> Tensor:
        """Text embeddings [B, D], not normalised; a text without valid tokens gives zeros.

        Args:
            token_ids_BT: integer ids, 0 = padding; T may be shorter than `max_tokens`.
            valid_BT: boolean, True = token counts; default: id is not 0.
            short_texts_S: texts without valid tokens from `short_length(T)` on, int64: they go through the blocks with
                as many tokens, in the same pass as the others. The numbers stay, up to rounding.

        Raises:
            ValueError: an id lies outside the vocabulary (checked on CPU tensors only), or T is too long.
        """
        self._check(token_ids_BT)
        valid_BT = token_ids_BT != PADDING_ID if valid_BT is None else valid_BT
        if short_texts_S is None or not len(short_texts_S):
            return self._encoded([(token_ids_BT, valid_BT)])
        order_B, count = _first(short_texts_S, len(token_ids_BT)), len(short_texts_S)
        ids_BT, valid_BT, short = token_ids_BT[order_B], valid_BT[order_B], short_length(token_ids_BT.shape[1])
        parts = [(ids_BT[:count, :short], valid_BT[:count, :short]), (ids_BT[count:], valid_BT[count:])]
        return self._encoded([part for part in parts if len(part[0])])[order_B.argsort()]

    def _encoded(self, parts: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Embeddings of all texts; ids and validity of each part have a length of their own."""
        # A text without tokens attends to everything instead of nothing; the mean below ignores it anyway.
        masks = [valid_BT | ~valid_BT.any(dim=1, keepdim=True) for _, valid_BT in parts]
        groups = [Group(len(mask_BT), mask_BT.shape[1], mask_BT) for mask_BT in masks]
        tokens_PD = torch.cat([self._embedded(ids_BT).flatten(0, 1) for ids_BT, _ in parts])
        for block in self.blocks:
            tokens_PD = block(tokens_PD, groups)
        normed = self.norm(tokens_PD).split([valid_BT.numel() for _, valid_BT in parts])
        means = [_masked_mean(part_PD, valid_BT) for part_PD, (_, valid_BT) in zip(normed, parts, strict=True)]
        return torch.cat(means) if len(means) > 1 else means[0]

    def _embedded(self, token_ids_BT: Tensor) -> Tensor:
        embedded_BTD = self.token_embedding(token_ids_BT) * math.sqrt(self.config.width)
        return embedded_BTD + self._positions(embedded_BTD)

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


def _first(chosen_S: Tensor, count: int) -> Tensor:
    """Positions 0 to count - 1, the chosen ones before all others, [count], without waiting for the device."""
    is_other = torch.ones(count, dtype=torch.int64, device=chosen_S.device)
    return is_other.index_fill_(0, chosen_S, 0).argsort(stable=True)


def _masked_mean(tokens_PD: Tensor, valid_BT: Tensor) -> Tensor:
    summed_BD = tokens_PD.view(*valid_BT.shape, -1).masked_fill(~valid_BT[..., None], 0).sum(dim=1)
    return summed_BD / valid_BT.sum(dim=1, keepdim=True).clamp(min=1)
