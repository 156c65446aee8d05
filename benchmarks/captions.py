"""Compares the captioner with transformers' generate, and measures the caption store, on one thread.

    python -m benchmarks.captions [--batch 16] [--images 64] [--rounds 3] [--model FOLDER] [--shards 0]

The model is a PaliGemma with random weights (width 256, 4 layers, 64 image tokens), or the one in FOLDER. Both sides
put the same images through the same processor and write captions of the same prescribed lengths: 32 tokens each, or
uniform in 4 to 64. Rounds alternate; the fastest processor time of each side counts.
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LogitsProcessor

from tests.captioning.tiny import write_paligemma
from tips_ray.captioning import decoding
from tips_ray.captioning.captioner import Captioner
from tips_ray.captioning.decoding import Row
from tips_ray.config.captions import CaptionerConfig
from tips_ray.data.captions.maintenance import compact
from tips_ray.data.captions.store import GROUP_CHUNKS, CaptionedShard, CaptionStore, ChunkCaptions

EQUAL, SHORTEST, LONGEST, END = 32, 4, 64, 1
CHUNK_ROWS, WINDOW_CHUNKS, RUNS = 64, 64, 5
SIZES = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 4}


def main() -> None:
    """Print figures and ratios."""
    parser = argparse.ArgumentParser()
    for name, default in (("batch", 16), ("images", 64), ("rounds", 3), ("shards", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--model", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = arguments.model or write_paligemma(Path(folder, "model"), image_px=112, head_dim=64, **SIZES)
        captioner = _captioner(model, arguments.batch)
        numbers = np.random.default_rng(0)
        images = [numbers.integers(0, 256, (120, 160, 3), np.uint8) for _ in range(arguments.images)]
        uniform = numbers.integers(SHORTEST, LONGEST + 1, len(images)).tolist()
        for name, lengths in (("equal lengths", [EQUAL] * len(images)), ("lengths uniform in 4-64", uniform)):
            _compare(name, captioner, images, lengths, arguments.rounds)
        _store(Path(folder, "store"))
        if arguments.shards:
            _listing(Path(folder, "many"), arguments.shards)


def _captioner(model: Path, batch: int) -> Captioner:
    config = CaptionerConfig(model=str(model), dtype="fp32", device="cpu", batch_images=batch, max_new_tokens=LONGEST)
    captioner = Captioner(config)
    captioner._model.generation_config.eos_token_id = END
    captioner._decoder._decoding = captioner._decoding()
    return captioner


class _DictatedBatch(decoding._Batch):
    """Ends each row after the number of tokens in its key."""

    def _chosen(self, rows: Sequence[Row], logits_RV: Tensor) -> Tensor:
        logits_RV[:, END] = torch.tensor([_end_score(len(row.tokens) >= row.key) for row in rows])
        return super()._chosen(rows, logits_RV)


class _Dictated(LogitsProcessor):
    """Ends each row of generate after its prescribed length."""

    def __init__(self, lengths: list[int], prompt: int) -> None:
        self.length_B, self.prompt = torch.tensor(lengths), prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        written = input_ids.shape[1] - self.prompt
        scores[:, END] = torch.where(self.length_B <= written, _end_score(True), _end_score(False))
        return scores


def _end_score(ends: bool) -> float:
    return 1e9 if ends else -1e9


def _compare(name: str, captioner: Captioner, images: list, lengths: list[int], rounds: int) -> None:
    decoding._Batch = _DictatedBatch
    sides = {"generate": _generate, "tips_ray": _write}
    texts = {side: action(captioner, images, lengths) for side, action in sides.items()}
    same = sum(one == other for one, other in zip(*texts.values(), strict=True))
    seconds = {side: [] for side in sides}
    for _ in range(rounds):
        for side, action in sides.items():
            seconds[side].append(_seconds(lambda action=action: action(captioner, images, lengths)))
    rates = {side: len(images) / min(spent) for side, spent in seconds.items()}
    print(f"{name}: {same} of {len(images)} captions alike")
    for side, rate in rates.items():
        print(f"  {side:10s} {rate:7.1f} captions/s")
    print(f"  ratio      {rates['tips_ray'] / rates['generate']:7.2f}")


def _write(captioner: Captioner, images: list, lengths: list[int]) -> list[list[int]]:
    rows = [captioner._rows(image, 0)[0] for image in images]
    for row, length in zip(rows, lengths, strict=True):
        row.key = length
    captioner._decoder.write(rows)
    return [row.tokens for row in rows]


@torch.inference_mode()
def _generate(captioner: Captioner, images: list, lengths: list[int]) -> list[list[int]]:
    """Captions by generate, in batches in the order of the images; each batch runs until its longest row ends."""
    (prompt,), places = captioner._prompts, captioner.batch_images
    found = []
    for first in range(0, len(images), places):
        part, wanted = images[first : first + places], lengths[first : first + places]
        ids = prompt.repeat(len(part), 1)
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        pixels = torch.stack([captioner._pixels(image) for image in part])
        dictated = [_Dictated(wanted, ids.shape[1])]
        options = {"max_new_tokens": LONGEST, "do_sample": False, "logits_processor": dictated}
        written = captioner._model.generate(**inputs, pixel_values=pixels, **options)[:, ids.shape[1] :]
        found += [tokens[:length] for tokens, length in zip(written.tolist(), wanted, strict=True)]
    return found


def _store(folder: Path) -> None:
    """Measure writing, compacting, and reading a window of 64 chunks, single and compacted."""
    store, shards = CaptionStore(str(folder), "0" * 16), [_shard(number, GROUP_CHUNKS) for number in range(4)]
    chunks = [(shard, chunk) for shard in shards for chunk in range(GROUP_CHUNKS)]
    spent = _seconds(lambda: [store.write(shard, chunk, _captions(chunk)) for shard, chunk in chunks])
    print(f"store: write {len(chunks) * CHUNK_ROWS / spent:9,.0f} rows/s")
    window = [chunks[number] for number in np.random.default_rng(0).permutation(len(chunks))[:WINDOW_CHUNKS]]
    for name in ("single", "compacted"):
        best = min(_seconds(lambda: store.read_many(window)) for _ in range(RUNS))
        print(f"  read, {name:10s} {WINDOW_CHUNKS * CHUNK_ROWS / best:9,.0f} rows/s")
        if name == "single":
            spent = _seconds(lambda: [compact(store, shard.name) for shard in shards])
            print(f"  compact          {len(chunks) * CHUNK_ROWS / spent:9,.0f} rows/s")


def _listing(folder: Path, count: int) -> None:
    """Measure finding the missing chunks of `count` shards when every second shard is complete and compacted."""
    store, shards = CaptionStore(str(folder), "0" * 16), [_shard(number, 151) for number in range(count)]
    for shard in shards[::2]:
        for start, stop in ((0, GROUP_CHUNKS), (GROUP_CHUNKS, 151)):
            path = Path(store.uri(shard.name, start, stop))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    start = time.perf_counter()
    missing = sum(map(len, store.missing(shards)))
    print(f"  missing: {missing:,} of {151 * count:,} chunks in {time.perf_counter() - start:.2f} s")


def _shard(number: int, chunks: int) -> CaptionedShard:
    return CaptionedShard(f"/data/{number:05d}.tar", 1, "e", "webdataset", "jpg", CHUNK_ROWS, chunks)


def _captions(chunk: int) -> ChunkCaptions:
    numbers = np.random.default_rng(chunk)
    words = [[f"word{word}" for word in row] for row in numbers.integers(0, 3000, (CHUNK_ROWS, 12))]
    texts = [[" ".join(row)] for row in words]
    return ChunkCaptions(CHUNK_ROWS * chunk, [numbers.bytes(32) for _ in texts], texts, [""] * CHUNK_ROWS)


def _seconds(action: Callable[[], object]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


if __name__ == "__main__":
    main()
