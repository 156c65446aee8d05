"""Machines a plan is made for: GPUs by their datasheets, published use of them, and what a person enters instead."""

import os
import re
import time
from typing import NamedTuple

import torch

GIB = 2**30
COUNTS = {"": 1, "k": 1e3, "M": 1e6, "B": 1e9}


class Gpu(NamedTuple):
    """One kind of GPU, and the machine it is mostly sold in."""

    memory_gib: float
    """What torch can use of it."""
    bf16_tflops: float
    """Dense bf16 products, by the datasheet."""
    link_gb_per_second: float
    """To its neighbours in the machine, one way."""
    node_gbit_per_second: float
    """Network of a machine with eight of them, all cards together: DGX A100 1600, DGX H100 3200; others 100."""


GPUS = {
    "a100": Gpu(79, 312, 300, 1600),
    "a100-40": Gpu(39.4, 312, 300, 1600),
    "h100": Gpu(79, 989, 450, 3200),
    "h200": Gpu(139, 989, 450, 3200),
    "l4": Gpu(22, 121, 32, 100),
    "l40s": Gpu(44, 362, 32, 100),
}
"""Sources: NVIDIA's datasheets of the SXM boards (L4, L40S: PCIe); memory less what driver and ECC take."""


class PublishedUse(NamedTuple):
    """A run whose share of the peak is public."""

    gpu: str
    is_giant: bool
    """The encoder has about a billion parameters."""
    mfu: float
    run: str


PUBLISHED = (
    PublishedUse("a100", False, 0.31, "DINOv2 L/14, 96 A100"),
    PublishedUse("a100", True, 0.39, "DINOv2 g/14, A100"),
    PublishedUse("h100", False, 0.185, "DINOv3 L/16, 32 H100"),
    PublishedUse("h100", True, 0.19, "NeMo CLIP g/14, 16 DGX H100"),
)
"""Images/s of these runs over the datasheet's peak, without recomputation."""
CPU_USE = 0.5
"""Share of the rate of one large product that a step reaches on a CPU (benchmarks/README.md: 0.32 to 0.67)."""


class Machine(NamedTuple):
    """All GPUs (or CPU workers) of a run."""

    kind: str
    workers: int
    """One on each GPU."""
    gpu: Gpu
    per_node: int

    @property
    def nodes(self) -> int:
        return -(-self.workers // self.per_node)


def machine(text: str, per_node: int = 8) -> Machine:
    """The machine that `h100:64` stands for; `cpu:2` are two workers on this one.

    Raises:
        ValueError: the text has another form, or the kind is not known.
    """
    kind, _, count = text.lower().partition(":")
    if not re.fullmatch(r"[1-9]\d*", count):
        raise ValueError(f"gpus ({text}): give a kind and a number, such as h100:64")
    if kind not in GPUS and kind != "cpu":
        raise ValueError(f"gpus ({text}): {kind} is not known; known are {', '.join(GPUS)} and cpu")
    return Machine(kind, int(count), GPUS[kind] if kind in GPUS else _this_cpu(), min(per_node, int(count)))


def count_of(text: str, name: str = "images") -> int:
    """116000000 of `116M`; k, M and B stand for thousands, millions and billions.

    Raises:
        ValueError: the text is no such number, or not above 0.
    """
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kKmMbB]?)", text.replace(",", ""))
    unit = {"K": "k", "m": "M", "b": "B"}.get(found[2], found[2]) if found else ""
    count = round(float(found[1]) * COUNTS[unit]) if found else 0
    if count < 1:
        raise ValueError(f"{name} ({text}): give a number above 0, such as 116M, 1.2B or 500k")
    return count


def published_use(kind: str, width: int) -> PublishedUse | None:
    """The public run that is nearest: of the GPU's family, and with an encoder of about this size; None: there is none.

    `width` is that of the image encoder.
    """
    family = {"h200": "h100", "a100-40": "a100"}.get(kind, kind)
    return next((one for one in PUBLISHED if one.gpu == family and one.is_giant == (width >= 1400)), None)


def _this_cpu() -> Gpu:
    """One worker on this machine's CPU: a large product in processor time of one thread; all of the memory."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    left, right = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = []
    for _ in range(5):
        start = time.thread_time()
        torch.matmul(left, right)
        seconds.append(time.thread_time() - start)
    torch.set_num_threads(threads)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Gpu(memory_bytes / GIB, 2 * 1024**3 / min(seconds) / 1e12, 10, 10)
