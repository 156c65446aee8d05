"""Measures the stall of training at a checkpoint, copied to host memory or written at once, and the cost of a resume.

    python -m benchmarks.checkpoint --variant B

One rank, AdamW with averages, a folder of this machine. The two ways to save alternate; medians count. The resume looks
for the newest checkpoint twice, as driver and controller do, and loads it once.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from benchmarks.train_step import train_config
from tips_ray import storage
from tips_ray.checkpoint_io import CheckpointWriter
from tips_ray.config.variants import VARIANTS
from tips_ray.runs.checkpoint import newest_checkpoint
from tips_ray.train.checkpointing import checkpoint_parts, load_checkpoint, save_checkpoint
from tips_ray.train.state import new_state


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variant", default="S", choices=("tiny", "small", *VARIANTS))
    parser.add_argument("--saves", type=int, default=3, help="of each kind")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, variant {arguments.variant}, {torch.get_num_threads()} threads")
    with tempfile.TemporaryDirectory() as folder:
        _compare(arguments.variant, arguments.saves, folder)
        _resume(arguments.variant, folder)


def _compare(variant: str, saves: int, folder: str) -> None:
    state = new_state(train_config(variant))
    writer, now, background, total = CheckpointWriter(folder, {}), [], [], []
    for _ in range(saves):
        now.append(_milliseconds(lambda: save_checkpoint(state, folder, {})))
        background.append(_milliseconds(lambda: writer.start(*checkpoint_parts(state))))
        total.append(background[-1] + _milliseconds(lambda: writer.committed(wait=True)))
    writer.close()
    gigabytes = sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file()) / 1e9
    print(f"checkpoint {gigabytes:.2f} GB; stall of each save: {', '.join(f'{ms:.0f}' for ms in background)} ms")
    print(f"on the spot {median(now):.0f} ms; in the background {median(background):.0f} ms of {median(total):.0f}")
    print(f"ratio of the two stalls {median(background) / median(now):.3f}")


def _resume(variant: str, folder: str) -> None:
    read, sizes = storage.read_bytes, list[int]()
    download = storage.download

    def counted_read(uri: str, *span: int) -> bytes:
        content = read(uri, *span)
        sizes.append(len(content))
        return content

    def counted_download(uri: str, path: Path) -> None:
        download(uri, path)
        sizes.append(path.stat().st_size)

    state = new_state(train_config(variant))
    storage.read_bytes, storage.download = counted_read, counted_download
    looked = [_milliseconds(lambda: newest_checkpoint(folder)) for _ in range(2)]
    found = newest_checkpoint(folder)
    assert found is not None
    loaded = _milliseconds(lambda: load_checkpoint(state, found))
    written = sum(entry["bytes"] for entry in found.manifest["files"].values())
    print(f"resume: {sum(sizes) / 1e9:.2f} GB read, {sum(sizes) / written:.3f} of the checkpoint's bytes")
    print(f"looking for the newest {sum(looked):.0f} ms for driver and controller, loading {loaded:.0f} ms")


def _milliseconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return 1000 * (time.perf_counter() - started)


if __name__ == "__main__":
    main()
