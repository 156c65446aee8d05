"""Simulates weak scaling: images/s of many GPUs over those of one node, from messages of FSDP and a network model.

    python -m benchmarks.scaling
    python -m benchmarks.scaling --variant L --images-per-gpu 256 --micro-batch 64 --gpu h100 --mfu 0.35

The messages are those that FSDP's hooks send in a step traced on fake tensors, on 64 workers. On other numbers those of
weights have the same bytes, and the gathers of the contrastive loss grow with the workers. Time is by
`tips_ray.planning.network`: rings, latency per hop, bandwidth inside and between nodes, hidden behind the computing of
its phase. `sharded` cuts the weights over all GPUs, `copies` over those of a node (`resources.replicas`). Computing
takes the same time everywhere: stragglers, congestion and waits for data are left out, so this is an upper bound.
"""

import argparse
from collections.abc import Sequence
from statistics import NormalDist

from tips_ray.config import RunConfig
from tips_ray.planning.flops import image_flops
from tips_ray.planning.live_storages import Message
from tips_ray.planning.machines import machine, published_use
from tips_ray.planning.network import Network, exposed_seconds, network_seconds
from tips_ray.planning.step_trace import traced
from tips_ray.words import table

TRACED, PER_NODE = 64, 8
PUBLIC = (128, 0.92, "NeMo CLIP g/14 on 16 DGX H100")
"""GPUs, efficiency from one node, run: the one public figure in our anchors."""


def run_config(args: argparse.Namespace, replicas: int = 1) -> RunConfig:
    """The run on TRACED workers."""
    tree = {
        "name": "scaling",
        "variant": args.variant,
        "image": {"image_size_px": 224},
        "data": {"sources": [{"uri": "none"}]},
        "global_batch_images": args.images_per_gpu * TRACED,
        "micro_batch_images": args.micro_batch,
        "resources": {"workers": TRACED, "replicas": replicas, "dtype": "bf16", "recompute": args.recompute},
    }
    return RunConfig.model_validate(tree)


def on_workers(messages: Sequence[Message], workers: int) -> list[Message]:
    """The messages of a step on TRACED workers as they are on `workers`; copies of the weights fill a node each."""
    found = []
    for message in messages:
        if message.ranks == TRACED:
            grows = workers / TRACED if message.phase == "losses" else 1.0
            message = message._replace(ranks=workers, bytes=round(message.bytes * grows))
        elif message.kind == "all-reduce":
            message = message._replace(ranks=workers // PER_NODE)
        found.append(message)
    return found


def step_seconds(
    messages: Sequence[Message], workers: int, network: Network, computing: dict[str, float], copies: bool
):
    """Seconds of a step, of all its messages and of what computing does not hide."""
    waiting = network_seconds(on_workers(messages, workers), network, workers // PER_NODE if copies else 1)
    exposed = exposed_seconds(waiting, computing)
    return sum(computing.values()) + exposed, sum(waiting.values()), exposed


def main(arguments: Sequence[str] | None = None) -> None:
    """Trace twice, print a row for each number of GPUs, and the public figure beside ours."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--variant", default="g")
    parser.add_argument("--images-per-gpu", type=int, default=128)
    parser.add_argument("--micro-batch", type=int, default=32)
    parser.add_argument("--recompute", default="none", choices=("none", "selective", "full"))
    parser.add_argument("--gpu", default="h100")
    parser.add_argument("--mfu", type=float, help="default: of a public run on this GPU")
    parser.add_argument("--network", type=float, help="Gbit/s of a node; default: that of a DGX")
    args = parser.parse_args(arguments)
    config, gpu = run_config(args), machine(f"{args.gpu}:{PER_NODE}").gpu
    public = published_use(args.gpu, config.image.width)
    mfu = args.mfu or (public.mfu if public else 0.35)
    node = (args.network or gpu.node_gbit_per_second) * 1e9 / 8
    network = Network(PER_NODE, gpu.link_gb_per_second * 1e9, node)
    done = image_flops(config).done(args.images_per_gpu // args.micro_batch, args.recompute)
    computing = {phase: args.images_per_gpu * flops / (mfu * gpu.bf16_tflops * 1e12) for phase, flops in done.items()}
    sharded, copies = traced(config).messages, traced(run_config(args, TRACED // PER_NODE)).messages
    _print(sharded, copies, network, computing)


def _print(
    sharded: Sequence[Message], copies: Sequence[Message], network: Network, computing: dict[str, float]
) -> None:
    both = ((sharded, False), (copies, True))
    one_node = {is_copy: step_seconds(kind, PER_NODE, network, computing, is_copy)[0] for kind, is_copy in both}
    rows, ours = [], 0.0
    for workers in (8, 16, 32, 64, 128, 256, 512, 1024):
        cells = [str(workers)]
        for messages, is_copy in both:
            whole, waiting, exposed = step_seconds(messages, workers, network, computing, is_copy)
            cells += [f"{whole:.2f}", f"{waiting:.2f}", f"{exposed:.3f}", f"{100 * one_node[is_copy] / whole:.1f} %"]
            if workers == PUBLIC[0] and not is_copy:
                ours = one_node[is_copy] / whole
        rows.append(cells)
    heads = ["step, s", "network, s", "not hidden", "efficiency"]
    print(table(["GPUs", *heads, *(f"copies: {head}" for head in heads)], rows))
    gpus, efficiency, run = PUBLIC
    more = 100 * (ours - efficiency)
    print(f"\n{run}: {efficiency:.0%} of one node's rate on {gpus} GPUs; simulated {ours:.1%}, {more:.1f} points more.")
    print("The model leaves out stragglers, congestion and data. That run trains CLIP alone, 1.7 TFLOP an image by its")
    print("own rate, so it computes less beside messages of the same weights.")
    spread = straggling(efficiency, gpus)
    extrapolated = ", ".join(
        f"{n}: {(1 + spread * slowest(8)) / (1 + spread * slowest(n)):.0%}" for n in (128, 512, 1024)
    )
    print(
        f"Were all of it stragglers, a GPU's step would vary by {spread:.1%}, and efficiency would be {extrapolated}."
    )


def slowest(ranks: int) -> float:
    """Expected maximum of so many standard normal numbers, by Blom's approximation."""
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def straggling(efficiency: float, ranks: int) -> float:
    """Standard deviation of a rank's step over its mean with which waiting for the slowest of `ranks` costs so much.

    (1 + s a) / (1 + s b) = efficiency, with a and b the slowest of a node and of all.
    """
    return (1 - efficiency) / (efficiency * slowest(ranks) - slowest(PER_NODE))


if __name__ == "__main__":
    main()
