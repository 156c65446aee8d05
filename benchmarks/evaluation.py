"""Measures evaluation at scale: memory of a segmentation probe, memory and time of exact k-NN.

  OMP_NUM_THREADS=2 python -m benchmarks.evaluation segmentation --images 10000
  OMP_NUM_THREADS=2 python -m benchmarks.evaluation neighbours --queries 2500

Features are random, which does not change the speed. `segmentation` writes images x 1,024 patches x 1,024 x 2 bytes to
the temporary folder. Memory is the process's own; pages of that file, which the system may drop, are counted
separately.
"""

import argparse
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from tips_ray.config.evaluation import ProbeConfig, SegmentationConfig
from tips_ray.evaluation.dense import DenseExamples
from tips_ray.evaluation.features import Scratch, ScratchFile
from tips_ray.evaluation.metrics import knn_predict
from tips_ray.evaluation.segmentation import Classes, linear_segmentation

PATCHES, WIDTH, CLASSES, LABEL_PX = 1024, 1024, 21, 128
BANK, QUERIES, BANK_CLASSES = 1_280_000, 50_000, 1000
LOOK_SECONDS = 0.1


def segmentation(images: int) -> None:
    """Write features to the file, then run the probe of `evaluate` with its usual steps and learning rates."""
    started = time.perf_counter()
    file = ScratchFile(images, Scratch(dtype=torch.float16))
    for part in _parts(images):
        file.append(part)
    patches = file.rows
    print(f"{patches.nbytes / 1e9:.1f} GB of features written in {time.perf_counter() - started:.0f} s", flush=True)
    generator = torch.Generator().manual_seed(1)
    labels = [
        torch.randint(CLASSES, (LABEL_PX, LABEL_PX), dtype=torch.uint8, generator=generator) for _ in range(images)
    ]
    examples = DenseExamples(patches, labels)
    few = DenseExamples(patches[:100], labels[:100])
    config = SegmentationConfig(data="random", probe=ProbeConfig())
    _told(lambda: linear_segmentation(examples, few, Classes(CLASSES, None), config))


def neighbours(queries: int) -> None:
    """Measure k-NN against a bank as large as ImageNet's training set."""
    generator = torch.Generator().manual_seed(0)
    bank, query = (torch.randn(rows, WIDTH, generator=generator) for rows in (BANK, queries))
    labels = torch.randint(BANK_CLASSES, (BANK,), generator=generator)
    print(f"bank of {bank.nbytes / 1e9:.1f} GB", flush=True)
    seconds = _told(lambda: knn_predict(query, bank, labels, 20))
    print(f"{QUERIES:,} queries: {seconds * QUERIES / queries / 60:.0f} minutes at this rate")


def _parts(images: int) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for first in range(0, images, 16):
        yield torch.randn(min(16, images - first), PATCHES, WIDTH, generator=generator)


def _told(work: Callable[[], object]) -> float:
    ends, peaks = threading.Event(), {"RssAnon": 0.0, "RssFile": 0.0}

    def look_on() -> None:
        while not ends.wait(LOOK_SECONDS):
            for name in peaks:
                peaks[name] = max(peaks[name], _status(name))

    started, looking = time.perf_counter(), threading.Thread(target=look_on)
    looking.start()
    work()
    seconds = time.perf_counter() - started
    ends.set()
    looking.join()
    print(f"{seconds:.0f} s; at most {peaks['RssAnon']:.1f} GB of its own, {peaks['RssFile']:.1f} GB of mapped files")
    return seconds


def _status(name: str) -> float:
    """A memory figure of this process from /proc/self/status, GB."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[name].split()[0]) * 1024 / 1e9


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=["segmentation", "neighbours"])
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--queries", type=int, default=2_500)
    arguments = parser.parse_args()
    if arguments.task == "segmentation":
        segmentation(arguments.images)
    else:
        neighbours(arguments.queries)
