"""Compares the planned memory of a step with the measured one, on this machine's CPU: sizes x recompute settings.

    python -m benchmarks.plan_memory
    python -m benchmarks.plan_memory --case S:2:0 --recompute none --fsdp

`planned` is `tips_ray.planning.step_trace` on fake tensors. Two figures are measured, of the step of
`benchmarks.train_step` (with `--fsdp` of a run's step in a group of one), after a first step:
`allocated` is the peak of torch's allocator, by the profiler, with weights and averages, as in `benchmarks.train_step`.
`resident` is the growth of the process's resident memory from before the networks were made to the peak of a step
(VmHWM of Linux), in a process of its own in which glibc gives back every block from 64 KiB on at once. It also holds
what kernels take for themselves and what is no tensor; two runs of one case differ by the error that is printed.
"""

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from benchmarks.measure import peak_bytes
from benchmarks.train_step import train_config
from tips_ray.config import RunConfig
from tips_ray.data.collate import batch_from
from tips_ray.planning.step_trace import fake_group, traced
from tips_ray.train.micro_batch import noise
from tips_ray.train.optim import fill_averages
from tips_ray.train.parallelize import apply_recomputation
from tips_ray.train.state import new_state
from tips_ray.train.step import train_step
from tips_ray.train.worker_loop import prepared_state
from tips_ray.words import table

CASES = ("small:8:0", "S:2:0", "B:4:112")
"""Size, images, side of the global crop in px (0: as published)."""
RECOMPUTE = ("none", "selective", "full")
CPU = torch.device("cpu")
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


def run_config(case: str, recompute: str) -> RunConfig:
    """A run of one worker with the sizes of `benchmarks.train_step`."""
    variant, images, px = case.split(":")
    sizes = train_config(variant, int(px) or None).model_dump(mode="json", exclude={"variant"})
    side = sizes["image"]["image_size_px"]
    local = {224: 98, 448: 140}.get(side, round(side / 32) * 14)
    tree = {
        "name": "plan-memory",
        "data": {"sources": [{"uri": "none"}]},
        "views": {"global_px": side, "local_px": local},
        "global_batch_images": int(images),
        "resources": {"recompute": recompute},
    }
    return RunConfig.model_validate(sizes | tree)


def measured(config: RunConfig, is_sharded: bool) -> dict[str, int]:
    """Peak bytes of the real step, by the two ways; call it in a process of its own."""
    _steps(run_config("tiny:2:0", "none"), is_sharded, 1)  # loads code and makes caches
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = _status("VmRSS")
    state, step = _steps(config, is_sharded, 1)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins again
    step()
    resident = _status("VmHWM") - before
    batch_bytes = sum(tensor.nbytes for tensor in _batch(config).tensors().values())
    return {"resident": resident, "allocated": peak_bytes(state, step, CPU) + batch_bytes}


def _steps(config: RunConfig, is_sharded: bool, count: int):
    state = prepared_state(config, CPU) if is_sharded else new_state(config)
    if not is_sharded:
        apply_recomputation(state.student, config.resources.recompute)
    fill_averages(state.optimizer)  # those of frozen prototypes come with the first checkpoint
    batch = _batch(config)

    def step() -> None:
        train_step(state, [batch], config)

    for _ in range(count):
        step()
    return state, step


def _batch(config: RunConfig):
    return batch_from(noise(config, config.images_per_pass)).to(CPU)


def _status(name: str) -> int:
    """A line of /proc/self/status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _measured_apart(case: str, recompute: str, is_sharded: bool) -> dict[str, int]:
    command = [sys.executable, "-m", "benchmarks.plan_memory", "--measure", case, "--recompute", recompute]
    done = subprocess.run(
        [*command, *["--fsdp"] * is_sharded], env=os.environ | _ALLOCATOR, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(done.stdout)


def row(case: str, recompute: str, is_sharded: bool, repeats: int) -> list[str]:
    """Cells of the table: case, setting, planned, both measurements and how far the plan is off."""
    planned = traced(run_config(case, recompute), is_sharded).peak_bytes
    found = [_measured_apart(case, recompute, is_sharded) for _ in range(repeats)]
    cells = [case, recompute, f"{planned / 2**20:.0f}"]
    for name in ("allocated", "resident"):
        values = [one[name] for one in found]
        cells += [f"{values[0] / 2**20:.0f}", f"{100 * (planned / values[0] - 1):+.1f} %"]
    spread = max(one["resident"] for one in found) / min(one["resident"] for one in found) - 1
    return [*cells, f"{100 * spread:.1f} %" if repeats > 1 else ""]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, row by row."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_memory", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--case", nargs="+", default=CASES, metavar="SIZE:IMAGES:PX")
    parser.add_argument("--recompute", nargs="+", choices=RECOMPUTE, default=RECOMPUTE)
    parser.add_argument("--fsdp", action="store_true", help="a run's step, in a group of one")
    parser.add_argument("--repeats", type=int, default=1, help="measurements of each case")
    parser.add_argument("--measure", metavar="SIZE:IMAGES:PX", help="measure one case in this process")
    args = parser.parse_args(arguments)
    if args.measure:
        config = run_config(args.measure, args.recompute[0])
        with fake_group(1) if args.fsdp else nullcontext():
            print(json.dumps(measured(config, args.fsdp)))
        return
    heads = ["case", "recompute", "planned, MiB", "allocated", "off", "resident", "off", "repeats differ"]
    rows = []
    for case in args.case:
        for recompute in args.recompute:
            rows.append(row(case, recompute, args.fsdp, args.repeats))
            print(" ".join(rows[-1]), file=sys.stderr, flush=True)
    print(table(heads, rows))


if __name__ == "__main__":
    main()
