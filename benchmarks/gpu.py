"""Measures the step of ViT-B, L and g on a GPU with one command, in less than ten minutes, and writes the figures.

    python -m benchmarks.gpu                    writes benchmarks/results/NAME-OF-THE-CARD.md
    python -m benchmarks.gpu --device cpu --cases tiny:4:1 --dtype fp32     tries the command where there is no GPU

Every case is a process of its own, so that one that does not fit into memory costs only its own row. A case that runs
longer than its share of `--minutes` is ended, and the page says so.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch

CASES = ("B:32:1:none", "B:256:1:none", "L:64:1:none", "L:256:4:none", "L:256:2:selective", "g:32:1:selective")
CASES += ("L:256:4:none:graph",)
"""Size, images a step, micro-batches, recomputation, and whether first passes keep their graphs. The first case is also
compared with the plain step."""
RESULTS = Path(__file__).parent / "results"


def arguments_of(case: str, args: argparse.Namespace, is_first: bool) -> list[str]:
    """Arguments of `benchmarks.train_step` for a case."""
    variant, batch, passes, *rest = case.split(":")
    recompute, *graph = rest or ["none"]
    options = ["--variant", variant, "--batch", batch, "--micro-batches", passes, "--recompute", recompute]
    options += ["--device", args.device, "--dtype", args.dtype, "--steps", str(args.steps)]
    options += ["--keep-graph"] if graph == ["graph"] else []
    compiled = ["--compile"] if args.compile and not is_first else []
    return [*options, *compiled, "--plain" if is_first else "--no-plain"]


def measured(options: list[str], seconds: float) -> str:
    """What the case printed, or why it printed nothing."""
    try:
        command = [sys.executable, "-m", "benchmarks.train_step", *options]
        done = subprocess.run(command, capture_output=True, text=True, timeout=max(seconds, 1))
    except subprocess.TimeoutExpired:
        return f"ended after {seconds:.0f} s: no time was left"
    if done.returncode:
        return f"failed: {(done.stderr.strip().splitlines() or ['without a word'])[-1]}"
    return done.stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure case by case; the page is written after each."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--cases", nargs="+", default=CASES, metavar="SIZE:IMAGES:MICRO_BATCHES[:RECOMPUTE[:graph]]")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("fp32", "bf16"), default="bf16")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--minutes", type=float, default=10, help="for all cases together")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(arguments)
    if args.device.startswith("cuda") and not torch.cuda.is_available():
        parser.error("this machine has no GPU that torch can use; --device cpu tries the command")
    name = torch.cuda.get_device_name() if args.device.startswith("cuda") else "CPU"
    args.out.mkdir(parents=True, exist_ok=True)
    page = args.out / f"{name.replace(' ', '-').replace('/', '-')}.md"
    ends, lines = time.monotonic() + 60 * args.minutes, [f"# {name}, torch {torch.__version__}\n"]
    for index, case in enumerate(args.cases):
        options = arguments_of(case, args, index == 0)
        shown = measured(options, ends - time.monotonic())
        lines.append(f"## {case}\n\n```\npython -m benchmarks.train_step {' '.join(options)}\n\n{shown}\n```\n")
        page.write_text("\n".join(lines))
        print(lines[-1], flush=True)
    print(f"figures: {page}")


if __name__ == "__main__":
    main()
