"""Repeat a step that the guard refused, in one process, and name the first tensor that is not finite.

  tips-ray replay out/runs/small
  tips-ray replay s3://bucket/runs/small --step 1234

The run saved the state before the step and the batch of every rank. Replaying takes one forward and backward pass of
the global batch and no cluster. Exit code 0: the step was reproduced; 1: it was not.
"""

import argparse
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.train.first_bad import FirstBad, Numbers
    from tips_ray.train.guard import BadStep
    from tips_ray.train.replay import Replay

MOST_IMAGES = 8
"""Most affected images that are named."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray replay`."""
    parser.add_argument("run", help="run folder, local or s3://")
    parser.add_argument("--step", type=int, metavar="K", help="a bad step of the run; default: the last")


def run(arguments: argparse.Namespace) -> int:
    """Replay the step and print what was found.

    Raises:
        ValueError: it is no run folder, or the run has no such bad step.
    """
    import torch

    from tips_ray import storage
    from tips_ray.runs.folder import require_run

    require_run(uri := storage.resolved(arguments.run))
    from tips_ray.train.guard import list_bad_steps
    from tips_ray.train.replay import replay

    bad_step = _chosen(list_bad_steps(uri), arguments.step, uri)
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    found = replay(bad_step, uri, device)
    print(
        f"step {bad_step.step}, saved by {bad_step.workers} workers in {bad_step.uri}, replayed on one ({device.type})"
    )
    print("\n".join([*_compared(bad_step, found), *_described(found)]))
    return 0 if found.is_reproduced(bad_step) else 1


def _chosen(bad_steps: "list[BadStep]", step: int | None, uri: str) -> "BadStep":
    if not bad_steps:
        raise ValueError(f"{uri} has no bad step: the guard saves one when a loss or gradient is not finite")
    chosen = [bad_step for bad_step in bad_steps if step in (None, bad_step.step)]
    if not chosen:
        raise ValueError(f"--step {step} is no bad step of {uri}; it has {[each.step for each in bad_steps]}")
    return chosen[-1]


def _compared(bad_step: "BadStep", found: "Replay") -> list[str]:
    lines = [
        f"  {name:28} {bad_step.metrics[name]:>12.6g} in the run {value:>12.6g} here"
        for name, value in found.metrics.items()
    ]
    if found.is_reproduced(bad_step):
        return [*lines, f"reproduced: the {bad_step.what} is not finite"]
    return [*lines, "not reproduced: try the run's device and versions; failing memory gives such steps once"]


def _described(found: "Replay") -> list[str]:
    if found.first is None:
        overflows = (
            "" if isfinite(found.metrics["grad_norm"]) else ": the gradients are so large that their norm overflows"
        )
        return [f"every tensor is finite{overflows}"]
    first = found.first
    lines = [f"first bad tensor: {_where(first)}", f"  {_shown(first.tensor)}"]
    lines += [f"  {_shown(beside)}" for beside in first.beside]
    if found.rank is not None:
        lines.append(f"  in micro-batch {found.micro_batch} of rank {found.rank}{_images(first, found)}")
    return lines


def _where(first: "FirstBad") -> str:
    if first.kind == "gradient":
        return f"gradient at the output of {first.name}; what comes after it in the forward pass made it"
    return {
        "input": f"input {first.name}, as the data brought it",
        "output": f"output of {first.name}",
        "loss": f"loss {first.name}, from outputs that are finite",
        "parameter gradient": f"gradient of the parameter {first.name}",
    }[first.kind]


def _shown(numbers: "Numbers") -> str:
    spans = f"finite values from {numbers.low:.6g} to {numbers.high:.6g}"
    return f"{numbers.name} {list(numbers.shape)} {numbers.dtype}: {numbers.not_finite} not finite, {spans}"


def _images(first: "FirstBad", found: "Replay") -> str:
    if first.images is None:
        return ""
    ids, keys = found.rows.get("sample_id", ()), found.rows.get("key", ())
    names = [f"{image}" for image in first.images]
    if ids and keys:
        names = [f"{name} (sample {ids[at]}, {keys[at]})" for at, name in enumerate(names)]
    more = f" and {len(names) - MOST_IMAGES} more" if len(names) > MOST_IMAGES else ""
    return f", images {', '.join(names[:MOST_IMAGES])}{more}"
