"""Operations of one image by part of the step, for the time of each phase."""

from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from tips_ray.config import RunConfig
from tips_ray.data.collate import batch_from
from tips_ray.distributed import alone
from tips_ray.train.flops import step_flops
from tips_ray.train.initial_weights import unloaded_teacher
from tips_ray.train.micro_batch import noise
from tips_ray.train.state import new_state


class ImageFlops(NamedTuple):
    """Floating-point operations per image, two per multiply-add."""

    total: float
    """One forward and one backward, with the teacher: what MFU counts."""
    student: float
    """The student's forward."""
    teacher: float
    embed: float
    """The first pass of a step with several micro-batches; not in the total."""

    def done(self, passes: int, recompute: str, keeps_graph: bool = False) -> dict[str, float]:
        """Operations that a step does for an image, by phase, also those that MFU leaves out.

        With a kept graph the student's passes leave out what the first pass did.
        """
        again = self.student if recompute == "full" else 0.0
        return {
            "embed": self.embed if passes > 1 else 0.0,
            "student": self.student - (self.embed if passes > 1 and keeps_graph else 0.0),
            "teacher": self.teacher,
            "backward": self.total - self.student - self.teacher + again,
        }


def image_flops(config: RunConfig) -> ImageFlops:
    """Count on shapes alone, over two images.

    Raises:
        ValueError: `objective.frozen_teacher` names no teacher for this config.
    """
    batch = batch_from(noise(config, 2))
    on_meta, state = batch.to("meta"), new_state(config, unloaded_teacher(config), "meta")
    with alone(), torch.no_grad():
        with FlopCounterMode(display=False) as student:
            outputs = state.student(on_meta)
        with FlopCounterMode(display=False) as teacher:
            state.teacher(on_meta, outputs.clean)
        with FlopCounterMode(display=False) as embed:
            state.student.embed(on_meta)
    counted = [counter.get_total_flops() / len(batch) for counter in (student, teacher, embed)]
    return ImageFlops(step_flops(config, batch, unloaded_teacher(config)) / len(batch), *counted)
