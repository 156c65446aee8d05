"""Small networks and random batches for tests. B images, V local crops, A captions, L patches, T tokens."""

import torch
from torch import Tensor

from tips_ray.batch import Batch, masked_index
from tips_ray.config import TrainConfig, override

IMAGE_PX, LOCAL_PX, TOKENS, VOCABULARY = 56, 28, 12, 50

TOY = {
    "image": {"width": 32, "depth": 2, "num_heads": 2, "ffn_hidden": 64, "image_size_px": IMAGE_PX},
    "text": {"width": 32, "depth": 2, "num_heads": 2, "ffn_hidden": 64, "vocab_size": VOCABULARY, "max_tokens": TOKENS},
    "head": {"num_prototypes": 24, "hidden": 32, "bottleneck": 16},
    "schedule": {"total_steps": 10, "peak_lr": 1e-3, "warmup": 0.2},
}


def toy_config(**values) -> TrainConfig:
    """The toy run with dotted keys replaced; `__` stands for the dot."""
    return override(TrainConfig, TOY, {key.replace("__", "."): value for key, value in values.items()})


def toy_batch(images: int, seed: int = 0, invalid: tuple[int, ...] = (), captions: int = 2) -> Batch:
    """Random crops and captions, masks with different counts per image (including 0 and all), some rows invalid."""
    generator = torch.Generator().manual_seed(seed)
    mask_BL = _uneven_mask(images, (IMAGE_PX // 14) ** 2, generator)
    valid_B = torch.ones(images, dtype=torch.bool)
    valid_B[list(invalid)] = False
    return Batch(
        torch.rand(images, 3, IMAGE_PX, IMAGE_PX, generator=generator),
        torch.rand(3, images, 3, LOCAL_PX, LOCAL_PX, generator=generator),
        mask_BL,
        masked_index(mask_BL),
        _token_ids((images,), generator),
        _token_ids((images, captions), generator),
        valid_B,
        torch.randint(2**62, (images,), generator=generator),
    ).to("cpu", torch.float64)


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Images start to stop of a batch, as a batch of its own."""
    return Batch(
        batch.global_crops_BCHW[start:stop],
        batch.local_crops_VBCHW[:, start:stop],
        batch.patch_mask_BL[start:stop],
        masked_index(batch.patch_mask_BL[start:stop]),
        batch.web_ids_BT[start:stop],
        batch.synthetic_ids_BAT[start:stop],
        batch.valid_B[start:stop],
        batch.key_B[start:stop],
    )


def _uneven_mask(images: int, patches: int, generator: torch.Generator) -> Tensor:
    counts = torch.linspace(0, patches, images).round().long() if images > 1 else torch.tensor([patches // 2])
    order_BL = torch.rand(images, patches, generator=generator).argsort(dim=1)
    return order_BL < counts[:, None]


def _token_ids(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    ids = torch.randint(1, VOCABULARY, (*shape, TOKENS), generator=generator)
    lengths = torch.randint(1, TOKENS + 1, (*shape, 1), generator=generator)
    return ids.masked_fill(torch.arange(TOKENS) >= lengths, 0)
