"""Precision of numbers: what must be fp32 at least, and how a GPU multiplies."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or in float64 if it is that already: bf16 has 8 bits for a number."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def use_fast_products(device: torch.device) -> None:
    """Let a GPU multiply fp32 matrices in TF32: factors of 11 bits, fp32 sums, several times the speed."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
