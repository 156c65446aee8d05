"""Precision of numbers: what must be fp32 at least."""

import torch
from torch import Tensor


def at_least_fp32(tensor: Tensor) -> Tensor:
    """The tensor in fp32, or in float64 if it is that already: bf16 has 8 bits for a number."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
