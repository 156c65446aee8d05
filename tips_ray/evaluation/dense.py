"""Code shared by tasks with a value per pixel. N images, L patches on a square grid, D width, C channels, H W pixels.

Images are squashed to a square but their maps are not, so H and W may differ from image to image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseExamples(NamedTuple):
    """Patch features of images, and their target maps."""

    patches_NLD: Tensor
    targets: Sequence[Tensor]
    """One map [H, W] per image: classes, or metres."""
    cls_NE: Tensor | None = None
    """CLS embeddings that are appended to every patch; E may differ from D."""

    def rows(self, places_n: Tensor) -> Tensor:
        """Probe inputs of the images `places_n`, fp32: patches [n, L, D], or [patch, CLS] [n, L, D + E]."""
        patches_nLD = self.patches_NLD[places_n].float()
        return patches_nLD if self.cls_NE is None else with_cls(patches_nLD, self.cls_NE[places_n])


def with_cls(patches_NLD: Tensor, cls_NE: Tensor) -> Tensor:
    """[patch, CLS] of every patch, [N, L, D + E]."""
    return torch.cat([patches_NLD, cls_NE[:, None].expand(-1, patches_NLD.shape[1], -1)], dim=-1)


def upsampled(rows_NLC: Tensor, size: Sequence[int]) -> Tensor:
    """Patch values upsampled bilinearly with half-pixel centres, [N, C, H, W]."""
    grid = round(rows_NLC.shape[1] ** 0.5)
    return F.interpolate(rows_NLC.mT.unflatten(2, (grid, grid)), tuple(size), mode="bilinear", align_corners=False)


def squashed(targets: Sequence[Tensor], size_px: int) -> Tensor:
    """Maps as one tensor [N, size_px, size_px], by nearest pixel centre, in the widest of their dtypes."""
    squashed_NHW = torch.empty(
        len(targets), size_px, size_px, dtype=max((one.dtype for one in targets), key=lambda dtype: dtype.itemsize)
    )
    for place_HW, one in zip(squashed_NHW, targets, strict=True):
        place_HW.copy_(F.interpolate(one[None, None].double(), (size_px, size_px), mode="nearest-exact")[0, 0])
    return squashed_NHW
