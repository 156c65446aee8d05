"""What tasks with a value per pixel share. N images, L patches on a square grid, D width, C channels, H W pixels.

Images are squashed to a square and their maps are not, so H and W may differ from image to image.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class DenseExamples(NamedTuple):
    """Images as a probe sees them, and the truth about them."""

    patches_NLD: Tensor
    targets: Sequence[Tensor]
    """[H, W] each: classes, or metres."""

    def at(self, places_n: Tensor) -> "DenseExamples":
        """Some of the images."""
        return DenseExamples(self.patches_NLD[places_n], [self.targets[place] for place in places_n.tolist()])


def upsampled(rows_NLC: Tensor, size: Sequence[int]) -> Tensor:
    """Values of patches, bilinearly, half-pixel centres, [N, C, H, W]."""
    grid = round(rows_NLC.shape[1] ** 0.5)
    return F.interpolate(rows_NLC.mT.unflatten(2, (grid, grid)), tuple(size), mode="bilinear", align_corners=False)


def squashed(targets: Sequence[Tensor], size_px: int) -> Tensor:
    """Maps as one tensor [N, size_px, size_px], each pixel that of the nearest centre, dtype kept."""
    resized = [F.interpolate(one[None, None].double(), (size_px, size_px), mode="nearest-exact") for one in targets]
    return torch.cat(resized)[:, 0].to(targets[0].dtype)
