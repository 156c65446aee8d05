"""TIPS image encoder. B images, L patches, D width, P packed tokens. Tokens: CLS-web, CLS-synthetic, patches row-major.

timm's ViT cannot be used: it has no mask token, resamples positions bicubically and takes one crop size per pass.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn import functional as F

from tips_ray.config import ImageEncoderConfig
from tips_ray.config.variants import image_sizes
from tips_ray.models.layers import Block, Group, drop_path_factors, feed_forward, initialize
from tips_ray.precision import at_least_fp32

NUM_CLS = 2


class ImageFeatures(NamedTuple):
    """Tokens after the final norm, none of them L2-normalised."""

    cls_web_BD: Tensor
    cls_synthetic_BD: Tensor
    patches_BLD: Tensor


@dataclass(frozen=True)
class View:
    """Images of one size that go through the encoder together."""

    images_BCHW: Tensor
    patch_mask_BL: Tensor | None = None
    """True where the patch is replaced by the mask token."""
    key_B: Tensor | None = None
    """Keys of drop-path; None: nothing is dropped."""


class ImageEncoder(nn.Module):
    """ViT, pre-norm, LayerNorm eps 1e-6, LayerScale. Parameter names are those of the released torch checkpoints.

    Source: arXiv:2410.16512 section 3; positions and token order from the released inference code.
    """

    def __init__(self, config: ImageEncoderConfig) -> None:
        super().__init__()
        self.config = config
        width, grid = config.width, config.grid
        self.patch_embed = PatchEmbed(None, config.patch_size_px, 3, width, strict_img_size=False)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, 1, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid * grid, width))
        self.blocks = nn.ModuleList(self._block() for _ in range(config.depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.reset_parameters()

    def _block(self) -> Block:
        config = self.config
        ffn = feed_forward(config.ffn, config.width, config.ffn_hidden, config.gelu)
        return Block(config.width, config.num_heads, ffn, norm_eps=1e-6, layer_scale=config.layer_scale_init)

    def reset_parameters(self) -> None:
        self.apply(initialize)

    def reset_own_parameters(self) -> None:
        """(D) Both CLS tokens start small and different."""
        for parameter in (self.cls_token, self.register_tokens, self.pos_embed):
            nn.init.trunc_normal_(parameter, std=0.02)
        nn.init.zeros_(self.mask_token)

    def forward(self, images_BCHW: Tensor, patch_mask_BL: Tensor | None = None) -> ImageFeatures:
        """Encode images of one size.

        Args:
            images_BCHW: RGB in [0, 1], floating point, no mean/std step; both sides multiples of the patch size.
            patch_mask_BL: boolean, True = masked.

        Raises:
            ValueError: shape, dtype or range of either tensor is wrong. NaN and infinity pass, because the
                training guard handles them on all ranks alike.
        """
        return self.forward_views([View(images_BCHW, patch_mask_BL)])[0]

    def forward_views(self, views: Sequence[View]) -> list[ImageFeatures]:
        """Encode crops of several sizes in one packed pass; equal to one `forward` per view."""
        embedded = [self._embed(view) for view in views]
        groups = [Group(tokens_BTD.shape[0], tokens_BTD.shape[1]) for tokens_BTD in embedded]
        tokens_PD = torch.cat([tokens_BTD.flatten(0, 1) for tokens_BTD in embedded])
        tokens_PD = self._run_blocks(tokens_PD, groups, self._drop_path(views, groups))
        return _unpacked(self.norm(tokens_PD), groups)

    def _run_blocks(self, tokens_PD: Tensor, groups: list[Group], kept: list | None) -> Tensor:
        merged = _merged(groups)
        for index, block in enumerate(self.blocks):
            tokens_PD = block(tokens_PD, merged, kept[index] if kept else None)
        return tokens_PD

    def _drop_path(self, views: Sequence[View], groups: list[Group]) -> list[tuple[Tensor, Tensor]] | None:
        rate = self.config.drop_path_rate if self.training else 0.0
        if not rate or all(view.key_B is None for view in views):
            return None
        device = views[0].images_BCHW.device
        keys, lengths, may_drop = [], [], []
        for view, group in zip(views, groups, strict=True):
            has_key, size = view.key_B is not None, (group.samples,)
            keys.append(view.key_B if has_key else torch.zeros(size, dtype=torch.int64, device=device))
            lengths.append(torch.full(size, group.length, device=device))
            may_drop.append(torch.full(size, has_key, device=device))
        tokens = sum(group.samples * group.length for group in groups)
        drawn = torch.cat(keys), torch.cat(lengths), rate, len(self.blocks), tokens
        return drop_path_factors(*drawn, torch.cat(may_drop) if any(view.key_B is None for view in views) else None)

    def _embed(self, view: View) -> Tensor:
        """Tokens before the first block, [B, 2 + L, D]."""
        images_BCHW, mask_BL = view.images_BCHW, view.patch_mask_BL
        rows, columns = self._checked_grid(images_BCHW, mask_BL)
        patches_BLD = self.patch_embed(images_BCHW.to(self.patch_embed.proj.weight.dtype))
        if mask_BL is not None:
            patches_BLD = torch.where(mask_BL[..., None], self.mask_token.to(patches_BLD.dtype), patches_BLD)
        position_web_1D, positions_LD = self._positions(rows, columns)
        cls_2D = torch.cat([self.cls_token[0] + position_web_1D, self.register_tokens[0]])
        cls_B2D = cls_2D.expand(len(images_BCHW), -1, -1).to(patches_BLD.dtype)
        return torch.cat([cls_B2D, patches_BLD + positions_LD.to(patches_BLD.dtype)], dim=1)

    def _positions(self, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Position of CLS-web [1, D] and of the patches [rows * columns, D]; CLS-synthetic has none."""
        web_1D, positions_LD = self.pos_embed[0].split([1, self.pos_embed.shape[1] - 1])
        if rows == columns == self.config.grid:
            return web_1D, positions_LD
        return web_1D, resized_positions(positions_LD, rows, columns)

    def _checked_grid(self, images_BCHW: Tensor, mask_BL: Tensor | None) -> tuple[int, int]:
        rows, columns = _check_images(images_BCHW, self.config.patch_size_px)
        expected = (len(images_BCHW), rows * columns)
        if mask_BL is not None and (mask_BL.dtype != torch.bool or mask_BL.shape != expected):
            raise ValueError(
                f"patch_mask_BL {tuple(mask_BL.shape)} {mask_BL.dtype} must be boolean {expected}: "
                f"images_BCHW {tuple(images_BCHW.shape)} have {rows}x{columns} patches"
            )
        return rows, columns


def resized_positions(positions_LD: Tensor, rows: int, columns: int) -> Tensor:
    """Positions of a square grid of L patches resampled to another grid, [rows * columns, D], fp32 or better.

    Source: the released inference code of google-deepmind/tips.
    """
    grid = math.isqrt(len(positions_LD))
    square_1DHW = at_least_fp32(positions_LD.T.unflatten(1, (grid, grid))[None])
    resized_1DHW = F.interpolate(square_1DHW, (rows, columns), mode="bilinear", align_corners=False, antialias=True)
    return resized_1DHW[0].flatten(1).T


def image_encoder(variant: str, **sizes) -> ImageEncoder:
    """Randomly initialised encoder `variant` (S B L So400m g); `sizes` replaces fields of ImageEncoderConfig."""
    return ImageEncoder(ImageEncoderConfig(**{**image_sizes(variant), **sizes}))


def dense_features(encoder: ImageEncoder, images_BCHW: Tensor, mode: Literal["values", "last"] = "values") -> Tensor:
    """Patch features as a map, [B, rows, columns, D], after the final norm.

    Args:
        encoder: the image encoder.
        images_BCHW: as for the encoder's forward.
        mode: `last` gives the ordinary patch tokens; `values` leaves attention's mixing out of the last block, so that
            patches stay local and can be compared with texts (TIPSv2, arXiv:2604.12012).
    """
    if mode not in ("values", "last"):
        raise ValueError(f"mode ({mode!r}) must be 'values' or 'last'")
    rows, columns = (side // encoder.config.patch_size_px for side in images_BCHW.shape[-2:])
    if mode == "last":
        return encoder(images_BCHW).patches_BLD.unflatten(1, (rows, columns))
    tokens_BTD = encoder._embed(View(images_BCHW))
    group = Group(tokens_BTD.shape[0], tokens_BTD.shape[1])
    tokens_PD = tokens_BTD.flatten(0, 1)
    for block in encoder.blocks[:-1]:
        tokens_PD = block(tokens_PD, [group])
    last_PD = encoder.norm(encoder.blocks[-1].forward_values(tokens_PD))  # pyright: ignore[reportCallIssue]
    return _unpacked(last_PD, [group])[0].patches_BLD.unflatten(1, (rows, columns))


def features_with_layers(
    encoder: ImageEncoder, images_BCHW: Tensor, places: Sequence[int]
) -> tuple[ImageFeatures, list[Tensor]]:
    """The encoder's features, and patch tokens [B, L, D] after each block in `places` (0 is the first), in one pass.

    Layers are before any final norm.
    """
    tokens_BTD, found = encoder._embed(View(images_BCHW)), {}
    group = Group(tokens_BTD.shape[0], tokens_BTD.shape[1])
    tokens_PD = tokens_BTD.flatten(0, 1)
    for place, block in enumerate(encoder.blocks):
        tokens_PD = block(tokens_PD, [group])
        if place in places:
            found[place] = _unpacked(tokens_PD, [group])[0].patches_BLD
    return _unpacked(encoder.norm(tokens_PD), [group])[0], [found[place] for place in places]


def cls_attention(encoder: ImageEncoder, images_BCHW: Tensor) -> Tensor:
    """Attention of both CLS tokens to the patches in the last block, mean over heads, [B, 2, L]: web, synthetic."""
    tokens_BTD = encoder._embed(View(images_BCHW))
    group = Group(tokens_BTD.shape[0], tokens_BTD.shape[1])
    tokens_PD, (*blocks, last) = tokens_BTD.flatten(0, 1), encoder.blocks
    for block in blocks:
        tokens_PD = block(tokens_PD, [group])
    weights_BhTT = last.attn.weights(last.norm1(tokens_PD), group)  # pyright: ignore
    return weights_BhTT.mean(dim=1)[:, :NUM_CLS, NUM_CLS:]


def _unpacked(tokens_PD: Tensor, groups: Sequence[Group]) -> list[ImageFeatures]:
    parts = tokens_PD.split([group.samples * group.length for group in groups])
    shaped = [part.view(group.samples, group.length, -1) for part, group in zip(parts, groups, strict=True)]
    return [ImageFeatures(tokens[:, 0], tokens[:, 1], tokens[:, NUM_CLS:]) for tokens in shaped]


def _merged(groups: Sequence[Group]) -> list[Group]:
    """Groups with neighbours of equal length merged, so that attention runs once for both."""
    merged: list[Group] = []
    for group in groups:
        if merged and merged[-1].length == group.length:
            merged[-1] = Group(merged[-1].samples + group.samples, group.length)
        else:
            merged.append(group)
    return merged


def _check_images(images_BCHW: Tensor, patch_size_px: int) -> tuple[int, int]:
    """Rows and columns of patches; the range is checked on CPU tensors only, so as not to wait for a device."""
    shape = tuple(images_BCHW.shape)
    if images_BCHW.dim() != 4 or shape[1] != 3:
        raise ValueError(f"images_BCHW {shape} must have shape (batch, 3, height, width)")
    if not images_BCHW.is_floating_point():
        raise ValueError(f"images_BCHW is {images_BCHW.dtype}; it must be floating point with values in [0, 1]")
    height, width = shape[2:]
    if height % patch_size_px or width % patch_size_px or not height or not width:
        raise ValueError(f"images_BCHW {shape}: height and width must be multiples of the patch size ({patch_size_px})")
    if images_BCHW.device.type == "cpu" and images_BCHW.numel():
        low, high = (value.item() for value in images_BCHW.aminmax())
        if -math.inf < low < -0.5 or 1.5 < high < math.inf:
            raise ValueError(
                f"images_BCHW spans [{low:.3g}, {high:.3g}]; values must lie in [0, 1] without mean/std normalisation "
                "(0.5 beyond is tolerated for the overshoot of a bicubic resize)"
            )
    return height // patch_size_px, width // patch_size_px
