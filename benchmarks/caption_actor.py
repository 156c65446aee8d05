"""Compares captions through Ray, from the data to the store, with a plain loop around transformers' generate.

    python -m benchmarks.caption_actor [--images 2048] [--batch 32] [--rounds 3] [--model jobs/scene_captioner]

Both sides read the same rendered scenes, decode them and write captions, greedy, in fp32, on one thread. Ray's rate is
measured between the first and the last chunk that one actor puts into the store, so that start-up does not count. The
loop's batches are in the order of the images. Rounds alternate; the median wall time of each side counts. Leave a core
free for Ray's other processes.
"""

import argparse
import io
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import ray
import torch
from PIL import Image
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration

from tests.toy_run import scene_row, tiny_run
from tips_ray.captioning.stream import CHUNKS_PER_TASK, CaptionInputs, due_chunks
from tips_ray.config import RunConfig
from tips_ray.data.index import Index
from tips_ray.data.index_folder import index_of
from tips_ray.data.stream import CaptionAccess
from tips_ray.launch.captions import caption_store
from tips_ray.launch.live_captions import caption_all

CHUNK_ROWS, TOKENS, PROMPT = 64, 64, "<image>caption en"


def main() -> None:
    """Print both rates and their ratio."""
    parser = argparse.ArgumentParser()
    for name, default in (("images", 2048), ("batch", 32), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", type=Path, default=Path("jobs/scene_captioner"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    ray.init("local", num_cpus=4, object_store_memory=1 << 30, include_dashboard=False, log_to_driver=False)
    with tempfile.TemporaryDirectory() as folder:
        config = _config(Path(folder), options)
        index = index_of(config.data, f"{folder}/index")
        found = [(_loop(index, options), _stream(config, index, number)) for number in range(options.rounds)]
    bare, stream = map(median, zip(*found, strict=True))
    print(f"generate loop {bare:7.1f} captions/s\nRay           {stream:7.1f} captions/s, one actor")
    print(f"ratio         {stream / bare:7.2f}")


def _config(root: Path, options: argparse.Namespace) -> RunConfig:
    captioner = {"model": str(options.model), "dtype": "fp32", "max_new_tokens": TOKENS, "batch_images": options.batch}
    keys = {"captions": {"source": "live", "captioner": captioner}, "data__chunk_rows": CHUNK_ROWS}
    (root / "scenes").mkdir()
    rows = pa.Table.from_pylist([scene_row(number) for number in range(options.images)])
    pq.write_table(rows, root / "scenes" / "all.parquet", row_group_size=CHUNK_ROWS)
    return tiny_run(root, str(root / "scenes"), **keys)


def _stream(config: RunConfig, index: Index, number: int) -> float:
    """Images per second through Ray; each round has a new store."""
    config = config.model_copy(update={"storage": f"{config.storage}/{number}"})
    store, captioner = caption_store(config)
    caption_all(CaptionInputs(config, captioner, index.uri, CaptionAccess(store)), due_chunks(index, config, store))
    written = sorted(path.stat().st_mtime for path in Path(store.folder).rglob("*.parquet"))
    assert len(written) == len(index.chunks.rows)
    first = CHUNKS_PER_TASK  # the first call writes these together, at its end
    return (len(written) - first) * CHUNK_ROWS / (written[-1] - written[first - 1])


@torch.inference_mode()
def _loop(index: Index, options: argparse.Namespace) -> float:
    """Images per second of the plain loop."""
    processor = AutoProcessor.from_pretrained(options.model)
    model: Any = PaliGemmaForConditionalGeneration.from_pretrained(options.model, dtype=torch.float32).eval()
    rows = [row for chunk in range(len(index.chunks.rows)) for row in index.read(chunk)]
    started = time.perf_counter()
    for first in range(0, len(rows), options.batch):
        images = [Image.open(io.BytesIO(row["image"])).convert("RGB") for row in rows[first : first + options.batch]]
        inputs = processor(images=images, text=[PROMPT] * len(images), return_tensors="pt")
        tokens = model.generate(**inputs, max_new_tokens=TOKENS, do_sample=False)
        processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return len(rows) / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
