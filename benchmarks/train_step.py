"""Measures images/s, MFU, memory and parts of one optimizer step, beside a plain version of the same step.

    python -m benchmarks.train_step --variant small
    python -m benchmarks.train_step --variant L --batch 64 --dtype bf16 --compile --device cuda

It is the step of a run: networks sharded by FSDP over a group of one, weights in fp32, gathered in `--dtype`. Images
and captions are random; there is no loader. MFU counts one forward and one backward, but no recomputation. A step by
itself ends when the host has its judgement; `in a row` are steps as a run has them, launched before the host has heard
of the one before.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from statistics import median

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import HashStore

from benchmarks.counts import Cost, step_costs
from benchmarks.measure import PARTS, matmul_flops, part_shares, peak_bytes, seconds
from benchmarks.plain_step import plain_state, plain_step
from tips_ray.batch import Batch, masked_index
from tips_ray.config import ResourcesConfig, TrainConfig
from tips_ray.config.variants import VARIANTS
from tips_ray.train.flops import datasheet_flops, step_flops
from tips_ray.train.parallelize import prepare_networks
from tips_ray.train.state import TrainState, new_state
from tips_ray.train.step import launch_step, new_halt, train_step

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_TOLERANCE = {"fp32": 1e-4, "bf16": 3e-2}
"""Largest relative difference of equal losses by rounding."""
_LOCAL_PX = {224: 98, 448: 140}
_DEMO = {
    "tiny": (56, dict(width=64, depth=2, num_heads=2, ffn_hidden=256), (500, 16), (512, 128)),
    "small": (112, dict(width=192, depth=6, num_heads=3, ffn_hidden=768), (4000, 32), (32_768, 2048)),
}


@dataclass
class Contender:
    """One version of the step, and its measurements."""

    state: TrainState
    step: Callable[[], dict[str, Tensor]]
    in_a_row: Callable[[int], None] | None = None
    """Does so many steps as a run does."""
    seconds: list[float] = field(default_factory=list)
    peak_bytes: int = 0


def train_config(variant: str, image_px: int | None = None) -> TrainConfig:
    """A published size, by default at 224 px, or a size for demonstrations; everything else as in training."""
    if variant not in _DEMO:
        return TrainConfig.model_validate({"variant": variant, "image": {"image_size_px": image_px or 224}})
    demo_px, block, (vocabulary, tokens), (prototypes, hidden) = _DEMO[variant]
    tree = {
        "image": block | {"image_size_px": image_px or demo_px},
        "text": block | {"vocab_size": vocabulary, "max_tokens": tokens},
        "head": {"num_prototypes": prototypes, "hidden": hidden},
    }
    return TrainConfig.model_validate(tree)


def random_batch(config: TrainConfig, images: int, crops: int) -> Batch:
    """A batch of noise with the config's sizes, 75 % of the patches masked, captions of full length."""
    generator = torch.Generator().manual_seed(config.seed)
    image_px, patch_px, text = config.image.image_size_px, config.image.patch_size_px, config.text
    local_px = _LOCAL_PX.get(image_px, round(image_px * 7 / 16 / patch_px) * patch_px)
    patches = config.image.grid**2
    mask_BL = torch.rand(images, patches, generator=generator).argsort(dim=1) < round(0.75 * patches)
    return Batch(
        torch.rand(images, 3, image_px, image_px, generator=generator),
        torch.rand(crops, images, 3, local_px, local_px, generator=generator),
        mask_BL,
        masked_index(mask_BL),
        torch.randint(1, text.vocab_size, (images, text.max_tokens), generator=generator),
        torch.randint(1, text.vocab_size, (images, 1, text.max_tokens), generator=generator),
        torch.ones(images, dtype=torch.bool),
        torch.randint(2**62, (images,), generator=generator),
    )


def split(batch: Batch, count: int) -> list[Batch]:
    """The batch as `count` micro-batches.

    Raises:
        ValueError: `count` does not divide the number of images.
    """
    if len(batch) % count:
        raise ValueError(f"batch ({len(batch)}) must be divisible by micro-batches ({count})")
    names = [name for name in vars(batch) if name not in ("masked_index_M", "short_texts_S")]
    chunks = (getattr(batch, name).chunk(count, dim=1 if name == "local_crops_VBCHW" else 0) for name in names)
    parts = [dict(zip(names, part, strict=True)) for part in zip(*chunks, strict=True)]
    return [Batch(**part, masked_index_M=masked_index(part["patch_mask_BL"])) for part in parts]


def contenders(args: argparse.Namespace, config: TrainConfig, batch: Batch) -> dict[str, Contender]:
    """The packed step and, with `args.plain`, the plain one from the same weights."""
    device = torch.device(args.device)
    resources = ResourcesConfig(dtype=args.dtype, compile=args.compile, recompute=args.recompute)
    state = new_state(config, device=device, prepare=partial(prepare_networks, resources, device))
    micro_batches = [part.to(device) for part in split(batch, args.micro_batches)]
    given = (state, micro_batches, config)
    found = {
        "packed": Contender(
            state,
            lambda: train_step(*given, keep_graph=args.keep_graph),
            lambda count: steps_in_a_row(*given, args.keep_graph, count),
        )
    }
    if args.plain:
        plain, whole = plain_state(new_state(config, device=device), config), batch.to(device)
        autocast = None if args.dtype == "fp32" else _DTYPES[args.dtype]
        found["plain"] = Contender(plain, lambda: plain_step(plain, whole, config, autocast))
    return found


def steps_in_a_row(
    state: TrainState, micro_batches: Sequence[Batch], config: TrainConfig, keep_graph: bool, count: int
) -> None:
    """Launch each step before the one before it is judged, as `train/guard.py` does."""
    halted, before = new_halt(micro_batches), None
    for _ in range(count):
        launched = launch_step(state, micro_batches, config, halted, keep_graph=keep_graph)
        if before:
            before.judge()
        before = launched
    if before:
        before.judge()


@contextmanager
def group_of_one(device: torch.device) -> Iterator[None]:
    """Inside, this process is the only rank of a process group."""
    is_cuda = device.type == "cuda"
    if is_cuda:
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if is_cuda else "gloo"
    dist.init_process_group(backend, store=HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


def first_difference(found: dict[str, Contender], dtype: str) -> float:
    """Take the first step of each; return the largest relative difference of their metrics, 0 for one contender."""
    packed, *others = ({name: value.item() for name, value in each.step().items()} for each in found.values())
    worst = max((abs(packed[name] / plain[name] - 1) for plain in others for name in plain), default=0.0)
    assert worst < _TOLERANCE[dtype], f"losses of the first step differ by {worst:.1e}"
    return worst


def measure(found: dict[str, Contender], steps: int, device: torch.device) -> None:
    """Measure peak memory, then time the steps in turns."""
    for contender in found.values():
        contender.peak_bytes = peak_bytes(contender.state, contender.step, device)
    for _ in range(steps):
        for contender in found.values():
            contender.seconds.append(seconds(contender.step, device))


def costs_table(costs: dict[str, Cost], shares: dict[str, float], step_seconds: float) -> list[str]:
    """What each part pays by count, beside its measured time."""
    lines = [f"{'part':12}{'GFLOP':>10}{'MB':>10}{'kernels':>10}{'ms':>10}{'GFLOP/s':>10}{'GB/s':>10}"]
    for part in (*PARTS, "rest"):
        cost, spent = costs.get(part, Cost()), shares.get(part, 0.0) * step_seconds
        rates = (cost.flops / spent / 1e9, cost.bytes / spent / 1e9) if spent else (0.0, 0.0)
        cells = (f"{cost.flops / 1e9:.1f}", f"{cost.bytes / 1e6:.0f}", str(cost.kernels), f"{1e3 * spent:.1f}")
        cells += (f"{rates[0]:.0f}", f"{rates[1]:.1f}")
        if cost.kernels or spent:
            lines.append(f"{part:12}" + "".join(f"{cell:>10}" for cell in cells))
    return lines


def table(found: dict[str, Contender], images: int, flops: int, peak: float | None, matmul: float) -> list[str]:
    """One row per measure, one column per contender."""
    rows = {"ms per step (median)": [], "images/s": [], "TFLOP/s": [], "MFU (datasheet peak)": []}
    rows |= {"share of matmul rate": [], "peak memory, GiB": []}
    for contender in found.values():
        spent = median(contender.seconds)
        cells = (
            f"{1e3 * spent:.1f}",
            f"{images / spent:.1f}",
            f"{flops / spent / 1e12:.3f}",
            "unknown" if peak is None else f"{100 * flops / spent / peak:.1f} %",
            f"{100 * flops / spent / matmul:.1f} %",
            f"{contender.peak_bytes / 2**30:.2f}",
        )
        for row, cell in zip(rows.values(), cells, strict=True):
            row.append(cell)
    return [f"{name:24}" + "".join(f"{cell:>12}" for cell in row) for name, row in ({"": list(found)} | rows).items()]


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.train_step", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--variant", choices=(*VARIANTS, *_DEMO), default="small")
    parser.add_argument("--batch", type=int, default=8, metavar="IMAGES")
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--crops", type=int, default=6, help="local crops per image")
    parser.add_argument("--image-size", type=int, metavar="PX", help="side of the global crop")
    parser.add_argument("--dtype", choices=tuple(_DTYPES), default="fp32", help="bf16: autocast, float32 weights")
    parser.add_argument("--recompute", choices=("none", "selective", "full"), default="none")
    parser.add_argument("--keep-graph", action="store_true", help="first passes of several micro-batches keep graphs")
    parser.add_argument("--compile", action="store_true", help="compile the packed step block by block")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of the CPU")
    parser.add_argument("--steps", type=int, default=10, help="timed steps")
    parser.add_argument("--plain", action=argparse.BooleanOptionalAction, help="default: on a CPU alone")
    args = parser.parse_args(arguments)
    args.plain = args.device == "cpu" if args.plain is None else args.plain
    return args


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; stop if the two versions disagree."""
    args = parse(arguments)
    torch.set_num_threads(args.threads)
    with group_of_one(torch.device(args.device)):
        _measured(args)


def _measured(args: argparse.Namespace) -> None:
    config, device, dtype = train_config(args.variant, args.image_size), torch.device(args.device), _DTYPES[args.dtype]
    batch = random_batch(config, args.batch, args.crops)
    costs = step_costs(config, split(batch, args.micro_batches))
    found = contenders(args, config, batch)
    worst = first_difference(found, args.dtype)
    measure(found, args.steps, device)
    flops, peak, matmul = step_flops(config, batch), datasheet_flops(device, dtype), matmul_flops(device, dtype)
    print(" ".join(f"{key}={value}" for key, value in vars(args).items()), "torch", torch.__version__)
    print(f"{flops / args.batch / 1e12:.4f} TFLOP per image; a large product runs at {matmul / 1e12:.3f} TFLOP/s\n")
    print("\n".join(table(found, args.batch, flops, peak, matmul)) + "\n")
    if in_a_row := found["packed"].in_a_row:
        each = seconds(lambda: in_a_row(args.steps), device) / args.steps
        mfu = "unknown" if peak is None else f"{100 * flops / each / peak:.1f} %"
        print(f"packed in a row: {1e3 * each:.1f} ms a step, {args.batch / each:.1f} images/s, MFU {mfu}\n")
    print("\n".join(costs_table(costs, part_shares(found["packed"].step, device), median(found["packed"].seconds))))
    print("counts: of the step by itself, nothing fused, nothing recomputed, no FSDP; ms: shares by profiler\n")
    if "plain" in found:
        ratio = median(found["plain"].seconds) / median(found["packed"].seconds)
        print(f"packed is {ratio:.2f} times as fast as plain; their first steps differ by {worst:.1e}")


if __name__ == "__main__":
    main()
