"""One micro-batch, the input of the networks. B images on this rank, V local crops, A synthetic captions per image,
L patches of a global crop, M masked patches, T tokens, S short texts."""

from dataclasses import dataclass, field, fields
from typing import Self

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Crops, masks and token ids of B positions of the sample order.

    Images are uint8 until `to` moves them to a device, then floating point in [0, 1].
    """

    global_crops_BCHW: Tensor
    local_crops_VBCHW: Tensor
    patch_mask_BL: Tensor
    """Boolean, True = masked."""
    masked_index_M: Tensor
    """Positions of True in `patch_mask_BL`, int64 into [B * L]; made on the host to avoid waiting for the device."""
    web_ids_BT: Tensor
    synthetic_ids_BAT: Tensor
    """A captions per image; a row of zeros is an absent caption, the first is always present."""
    valid_B: Tensor
    """False: the row keeps its place, but has no weight in any loss, is no negative and does not move centres."""
    key_B: Tensor
    """Key made from (seed, epoch, sample id), int64; all randomness of the step comes from it."""
    short_texts_S: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))
    """Texts whose tokens all lie in the first `short_length(T)` places, positions in [2 * B], web captions first and
    then synthetic ones, int64; made on the host. The text encoder computes nothing behind these places."""

    def __post_init__(self) -> None:
        batch = len(self.global_crops_BCHW)
        sizes = {
            "local_crops_VBCHW": self.local_crops_VBCHW.shape[1],
            "patch_mask_BL": len(self.patch_mask_BL),
            "web_ids_BT": len(self.web_ids_BT),
            "synthetic_ids_BAT": len(self.synthetic_ids_BAT),
            "valid_B": len(self.valid_B),
            "key_B": len(self.key_B),
        }
        for name, size in sizes.items():
            if size != batch:
                raise ValueError(f"{name} holds {size} images, global_crops_BCHW holds {batch}")

    def __len__(self) -> int:
        return len(self.global_crops_BCHW)

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32, copy: bool = False) -> Self:
        """The batch on `device`, with images as `dtype` in [0, 1].

        Args:
            copy: share no memory with this batch, wherever it lies; images that are uint8 never do.
        """
        crops = ("global_crops_BCHW", "local_crops_VBCHW")
        moved = {}
        for name, value in self.tensors().items():
            is_raw = name in crops and value.dtype == torch.uint8
            moved[name] = value.to(device, non_blocking=True, copy=copy and not is_raw)
            if name in crops:
                moved[name] = moved[name].to(dtype) / 255 if is_raw else moved[name].to(dtype)
        return type(self)(**moved)

    def pinned(self) -> Self:
        """The batch in pinned memory of the host, from which copies to an accelerator wait for nothing."""
        return type(self)(**{name: value.pin_memory() for name, value in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name."""
        return {one.name: getattr(self, one.name) for one in fields(self)}


def short_length(tokens: int) -> int:
    """Length of a short text where the longest has `tokens`: half of it, rounded up to a multiple of 8."""
    return min(-(-tokens // 16) * 8, tokens)


def masked_index(patch_mask_BL: Tensor) -> Tensor:
    """Positions of the masked patches in [B * L], int64; call it on the host, because it would wait for a device."""
    return patch_mask_BL.flatten().nonzero().flatten()
