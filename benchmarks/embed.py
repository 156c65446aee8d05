"""Compares embedding through Ray, from the data to the files, with a plain loop over the same images.

    python -m benchmarks.embed [--source DATA] [--images 1024] [--rounds 3] [--variant S] [--size 112]

The loop decodes with Pillow, squashes and encodes batches of 64 in fp32 on one thread, and keeps nothing; a second
figure is its encoder alone. Ray has one actor of one thread and one task that decodes. Its rate is measured between the
first and the last file, so that start-up does not count. Rounds alternate; the median wall time of each side counts.
Leave a core free for Ray's other processes.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import ray
import torch
from PIL import Image

from tests.toy_run import scene_row, write_scenes
from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.data.index import Index
from tips_ray.evaluation.encoders import Encoder
from tips_ray.evaluation.load_encoder import load_encoder
from tips_ray.launch.embedding import embed_all, embed_inputs
from tips_ray.models import TipsModel, image_encoder, text_encoder, train_tokenizer

BATCH = 64


def main() -> None:
    """Print the rates and their ratios."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", help="data of any format; default: rendered scenes")
    parser.add_argument("--variant", default="S", help="S, B, ...; random weights")
    for name, default in (("images", 1024), ("rounds", 3), ("size", 112)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        source = options.source or write_scenes(root / "scenes", options.images)
        model = _model(root, options.variant)
        config = EmbeddingConfig.model_validate({"source": {"uri": source}, "image_size_px": options.size})
        encoder = load_encoder(model, options.size)
        found = []
        for number in range(options.rounds):
            stream, index = _stream(model, config, root / str(number))
            found.append((stream, *_loop(encoder, index)))
    stream, loop, alone = map(median, zip(*found, strict=True))
    print(f"plain loop    {loop:7.1f} images/s, its encoder alone {alone:.1f}")
    print(f"Ray           {stream:7.1f} images/s, one actor")
    print(f"ratio         {stream / loop:7.2f}, to the encoder alone {stream / alone:.2f}")


def _model(root: Path, variant: str) -> str:
    tokenizer = train_tokenizer([scene_row(0)["synthetic_caption"]], 60)
    image, text = image_encoder(variant), text_encoder(variant, depth=1, vocab_size=100)
    return str(TipsModel(image.eval(), text.eval(), tokenizer, 0.07).export_transformers(root / "model"))


def _stream(model: str, config: EmbeddingConfig, out: Path) -> tuple[float, Index]:
    """Images per second through Ray, and the index of the data."""
    inputs, index = embed_inputs(model, config, str(out))
    embed_all(inputs, inputs.folder.missing(index, inputs.layout.row_bytes), print)
    written = sorted((path.stat().st_mtime, path.name) for path in (out / "embeddings").glob("*.parquet"))
    rows = [int(name[11:21]) - int(name[:10]) for _, name in written]
    return sum(rows[1:]) / (written[-1][0] - written[0][0]), index


def _loop(encoder: Encoder, index: Index) -> tuple[float, float]:
    """Images per second of the plain loop, and of its encoder alone."""
    images = [row["image"] for chunk in range(len(index.chunks.rows)) for row in index.read(chunk)]
    side, encoding, started = encoder.image_size_px, 0.0, time.perf_counter()
    for first in range(0, len(images), BATCH):
        pixels_BSS3 = np.stack([_pixels(image, side) for image in images[first : first + BATCH]])
        begun = time.perf_counter()
        encoder.features(torch.from_numpy(pixels_BSS3).permute(0, 3, 1, 2).float() / 255)
        encoding += time.perf_counter() - begun
    return len(images) / (time.perf_counter() - started), len(images) / encoding


def _pixels(image: bytes, side: int) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(image)).convert("RGB").resize((side, side), Image.Resampling.BILINEAR))


if __name__ == "__main__":
    main()
