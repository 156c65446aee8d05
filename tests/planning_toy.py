"""A small run to plan, and its step by a trace that was made once."""

from functools import cache

from tips_ray.config import RunConfig, override
from tips_ray.planning.step_trace import StepTrace, traced

TOY = {
    "name": "toy",
    "image": {"width": 32, "depth": 1, "num_heads": 2, "ffn_hidden": 64, "image_size_px": 28},
    "text": {"width": 32, "depth": 1, "num_heads": 2, "ffn_hidden": 64, "vocab_size": 100, "max_tokens": 8},
    "head": {"num_prototypes": 1000, "hidden": 48, "bottleneck": 16},
    "views": {"global_px": 28, "local_px": 14, "local_crops": 2},
    "data": {"sources": [{"uri": "none"}]},
    "schedule": {"total_steps": 100},
    "global_batch_images": 16,
    "micro_batch_images": 2,
    "resources": {"workers": 4},
}


def toy_run(**values) -> RunConfig:
    """The run with dotted keys replaced; dots are written as two underscores."""
    return override(RunConfig, TOY, {key.replace("__", "."): value for key, value in values.items()})


@cache
def toy_trace() -> StepTrace:
    """The step of one of four workers: two passes of two images."""
    return traced(toy_run())
