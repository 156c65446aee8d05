"""Settings of GPUs, on a machine without one."""

import pytest
import torch

from tips_ray.config import ResourcesConfig
from tips_ray.devices import allocator_settings, use_fast_products

ON_GPUS = ResourcesConfig(gpus_per_worker=1)


def test_segments_grow_on_gpus_unless_the_user_has_set_the_allocator():
    assert allocator_settings(ON_GPUS, {}) == {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert allocator_settings(ResourcesConfig(), {}) == {}
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        assert allocator_settings(ON_GPUS, {name: "max_split_size_mb:64"}) == {}


@pytest.mark.parametrize(("device", "precision"), [("cuda", "high"), ("cpu", "highest")])
def test_products_of_fp32_matrices_are_in_tf32_on_gpus_alone(device, precision):
    try:
        use_fast_products(torch.device(device))
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")
