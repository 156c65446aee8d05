"""Operations of a training step, and their share of a device's peak."""

import logging

import torch
from torch.utils.flop_counter import FlopCounterMode

from tips_ray.batch import Batch
from tips_ray.config import RunConfig, TrainConfig
from tips_ray.distributed import alone, world_size
from tips_ray.models.networks import Teacher
from tips_ray.train.parallelize import compute_dtype
from tips_ray.train.state import new_state
from tips_ray.train.step import accumulate_gradients

BF16_TFLOPS = {"A100": 312.0, "H100": 989.0, "H200": 989.0}
"""Dense products, by the datasheet of the SXM board."""
log = logging.getLogger(__name__)


def step_flops(config: TrainConfig, batch: Batch, teacher: Teacher | None = None) -> int:
    """Floating-point operations (two per multiply-add) of the matrix products of one step, forward and backward.

    Counted on shapes alone, over one micro-batch, whose images are the only negatives, and without recomputation, so
    that every way of doing the step has the same number. Without data, attention is unfused; the backward of a fused
    one would count its scores a second time. A frozen `teacher` has sizes of its own and must be given, on `meta`.

    Raises:
        ValueError: `objective.teacher` is `frozen` and none is given.
    """
    state = new_state(config, teacher, device="meta")
    # What is compiled as one graph, as losses are, cannot run under a mode that sees every operator.
    with alone(), torch.compiler.set_stance("force_eager"), FlopCounterMode(display=False) as counter:
        accumulate_gradients(state, [batch.to("meta")], config.objective, config.schedule.total_steps)
    return counter.get_total_flops()


def datasheet_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """Peak FLOP/s of dense bf16 products by the datasheet of the SXM board; None if unknown."""
    if device.type != "cuda" or dtype != torch.bfloat16:
        return None
    name = torch.cuda.get_device_name(device)
    if "NVL" in name or ("PCIe" in name and "A100" not in name):  # slower boards of the same name
        return None
    return next((tflops * 1e12 for chip, tflops in BF16_TFLOPS.items() if chip in name), None)


class Utilization:
    """MFU: operations of the model, without recomputation, over what all devices could do by their datasheet."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self._per_image: float | None = None
        self._is_told = False

    def metrics(self, device: torch.device, batch: Batch, images_per_second: float) -> dict[str, float]:
        """`mfu`, if the peak of `device` is known and the teacher has the student's size.

        Args:
            device: the same kind on every rank.
            batch: any micro-batch; operations are counted once.
            images_per_second: of all ranks together.
        """
        peak = self._peak(device)
        if peak is None or self.config.objective.teacher == "frozen":
            return {}
        if self._per_image is None:
            self._per_image = step_flops(self.config, batch) / len(batch)
        return {"mfu": self._per_image * images_per_second / (peak * world_size())}

    def _peak(self, device: torch.device) -> float | None:
        """Peak FLOP/s of the device; where it is not known, the log says so once."""
        dtype = compute_dtype(self.config.resources)
        peak = datasheet_flops(device, dtype)
        if peak is None and device.type == "cuda" and not self._is_told:
            self._is_told = True
            log.warning(
                "no mfu is logged: the peak of %s in %s is not known", torch.cuda.get_device_name(device), dtype
            )
        return peak
