"""Settings of a process's GPU, and what an error of one says. On CPUs nothing here has an effect."""

import os
from collections.abc import Mapping

import torch

from tips_ray.config import ResourcesConfig

_ALLOCATOR_NAMES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
_SAID_OF_MEMORY = ("out of memory", "allocate memory", "alloc_failed", "allocation_failed")
"""Words, in lower case, of CUDA, Triton and NCCL; of torch on CPUs; of cuBLAS; of cuDNN."""


def allocator_settings(resources: ResourcesConfig, given: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Environment variables of a process with a GPU, empty where the user has set torch's allocator or there is no GPU.

    A segment that can grow holds tensors of any size. Without that, memory that is free in pieces ends a run whose
    texts or crops differ in length. torch reads the variable when it first asks for memory.
    """
    if not resources.gpus_per_worker or any(name in given for name in _ALLOCATOR_NAMES):
        return {}
    return {_ALLOCATOR_NAMES[0]: "expandable_segments:True"}


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: of a GPU's libraries only some have an error class of their own for it."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _SAID_OF_MEMORY)


def use_fast_products(device: torch.device) -> None:
    """Let a GPU multiply fp32 matrices in TF32: factors of 11 bits, fp32 sums, several times the speed."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
