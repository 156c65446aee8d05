"""Compares our images per second from encoded file to crops with torchvision's transforms, on one core.

    python -m benchmarks.views [FOLDER] [--images 200] [--rounds 5]

FOLDER holds JPEG files; without it, pictures of 500 x 375 pixels are generated. Theirs decodes with Pillow, ours with
simplejpeg. Both make one global and six local crops of the same sizes and scales, as uint8. Ours also draws the mask
and fills a block; theirs stacks the crops as a DataLoader does. Rounds alternate; the fastest processor time of each
side counts, so that a busy machine favours neither. Neither side reads the file or tokenizes.
"""

import argparse
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import default_collate
from torchvision.transforms import v2

from tips_ray.config import ViewsConfig
from tips_ray.data.decode import decode
from tips_ray.data.views import RowSettings, training_rows

VIEWS = ViewsConfig()
SETTINGS = RowSettings(VIEWS, 14, 2**26, 64_000_000, "invalid", 64, 1)
BLOCK = 64


def main() -> None:
    """Print a line for each side and their ratio."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    files = _photos(arguments.folder, arguments.images) if arguments.folder else _made_up(min(arguments.images, 64))
    pixels = np.mean([np.prod(decode(file, 2**30, 10**9).shape[:2]) for file in files])
    print(f"{len(files)} JPEG files, {np.mean([*map(len, files)]) / 1e3:.0f} kB and {pixels / 1e6:.2f} megapixels each")
    sides = {"torchvision": _torchvision(), "tips_ray": _tips_ray, "tips_ray, decoding alone": _decoding}
    rates = _images_per_second(sides, files, arguments.rounds)
    for name, rate in rates.items():
        print(f"{name:25s} {rate:7.0f} images/s")
    print(f"{'ratio':25s} {rates['tips_ray'] / rates['torchvision']:7.2f}")


def _photos(folder: Path, images: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted(folder.glob("*.jp*g"))[:images]]


def _made_up(images: int) -> list[bytes]:
    """Pictures of smooth colours with some grain, with about as many bytes as photos of this size."""
    numbers = np.random.default_rng(0)
    files = []
    for _ in range(images):
        smooth = Image.fromarray(numbers.integers(0, 256, (24, 32, 3), np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        grain = numbers.normal(0, 6, (375, 500, 1))
        file = io.BytesIO()
        Image.fromarray((np.asarray(smooth) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        files.append(file.getvalue())
    return files


def _torchvision() -> Callable[[list[bytes]], object]:
    """torchvision's side, like a DataLoader worker: one image after the other, then one stacked batch."""
    whole = v2.Compose([v2.RandomResizedCrop(VIEWS.global_px, VIEWS.global_scale), v2.RandomHorizontalFlip(VIEWS.flip)])
    local = v2.Compose([v2.RandomResizedCrop(VIEWS.local_px, VIEWS.local_scale), v2.RandomHorizontalFlip(VIEWS.flip)])
    to_image = v2.ToImage()

    def item(file: bytes) -> tuple[Tensor, Tensor]:
        image = to_image(Image.open(io.BytesIO(file)).convert("RGB"))
        return whole(image), torch.stack([local(image) for _ in range(VIEWS.local_crops)])

    return lambda files: default_collate([item(file) for file in files])


def _tips_ray(files: list[bytes]) -> object:
    rows = [
        {
            "position": number,
            "step": 0,
            "sample_id": number,
            "sample_key": number,
            "key": "",
            "error": "",
            "image": file,
        }
        | {"web_caption": "a", "synthetic_captions": ["b"]}
        for number, file in enumerate(files)
    ]
    return training_rows(rows, SETTINGS, lambda texts, _: np.ones((len(texts), 1), np.int64))


def _decoding(files: list[bytes]) -> object:
    return [decode(file, SETTINGS.max_image_bytes, SETTINGS.max_image_pixels) is None for file in files]


def _images_per_second(
    sides: dict[str, Callable[[list[bytes]], object]], files: list[bytes], rounds: int
) -> dict[str, float]:
    fastest = dict.fromkeys(sides, float("inf"))
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.process_time()
            for first in range(0, len(files), BLOCK):
                side(files[first : first + BLOCK])
            fastest[name] = min(fastest[name], time.process_time() - start)
    return {name: len(files) / seconds for name, seconds in fastest.items()}


if __name__ == "__main__":
    main()
