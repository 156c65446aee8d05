"""Measures the stages of curation on one core: texts/s, images/s and core-seconds per million rows.

    OMP_NUM_THREADS=1 python -m benchmarks.curation [--texts FILE] [--images FOLDER] [--rounds 3]
    OMP_NUM_THREADS=1 python -m benchmarks.curation --search [--queries 10000] [--rows 1000000] [--width 768]
    OMP_NUM_THREADS=1 python -m benchmarks.curation --duplicates [--rows 50000] [--clusters 0 128 512]

The first command times language, hashes and the search for close hashes. FILE has one text a line, FOLDER JPEG files;
without them, captions and pictures of scenes are taken. Each stage's fastest processor time counts. `--search` makes
the pool chunk by chunk as float16 and prints the peak of this process's memory. `--duplicates` plants a near-copy of
every tenth row at cosines of 0.9 to 0.99 among rows that lie in groups, and prints which share of the exact pairs each
number of clusters finds.
"""

import argparse
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tips_ray.curation import language
from tips_ray.curation.hashes import close_pairs, close_to, hashes
from tips_ray.curation.search import nearest, similar_pairs
from tips_ray.data.decode import decode
from tips_ray.scenes import render_scene

MILLION = 1_000_000
CHUNK_ROWS = 16_384
THRESHOLD = 0.9
GROUP_ROWS, GROUP_SPREAD = 200, 1.0
"""Rows of a group, and the length of what tells them apart beside what they share, which has length 1."""


def main() -> None:
    """Print what was asked for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--texts", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--search", action="store_true")
    parser.add_argument("--duplicates", action="store_true")
    parser.add_argument("--clusters", type=int, nargs="+", default=[0, 128])
    for name, default in (("rounds", 3), ("queries", 10_000), ("rows", 0), ("width", 768), ("k", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.search:
        _search(options.queries, options.rows or MILLION, options.width, options.k)
    elif options.duplicates:
        _duplicates(options.rows or 50_000, options.width, options.clusters)
    else:
        _language(_texts(options.texts), options.rounds)
        _hashes(_pictures(options.images), options.rounds)
        _close(options.rows or 200_000)


def _texts(file: Path | None) -> list[str]:
    if file:
        return file.read_text().splitlines()
    captions = [render_scene(0, index, 8).web_caption for index in range(1000)]
    return [*captions, *map(str.title, captions)] * 2


def _pictures(folder: Path | None) -> list[NDArray[np.uint8]]:
    """Pictures whose shorter side is 256 pixels."""
    if folder is None:
        return [render_scene(0, index, 256).image_HWC for index in range(100)]
    files = sorted(folder.glob("*.jp*g"))[:200]
    images = [Image.fromarray(decode(file.read_bytes(), 2**30, 10**9)) for file in files]
    scales = [256 / min(image.size) for image in images]
    return [
        np.asarray(image.resize((round(image.width * scale), round(image.height * scale))))
        for image, scale in zip(images, scales, strict=True)
    ]


def _language(texts: list[str], rounds: int) -> None:
    language.votes(texts[:1])  # loads the models
    cleaned = [text for text in map(language._cleaned, texts) if text]
    for name in language.IDENTIFIERS:
        seconds = _seconds(lambda name=name: getattr(language, f"_{name}")(cleaned), rounds)
        _tell(name, len(cleaned), seconds, "texts")
    _tell("language", len(texts), _seconds(lambda: language.votes(texts), rounds), "texts")
    characters = np.mean([*map(len, texts)])
    votes_N = language.votes(texts).sum(axis=1)
    shares = ", ".join(f"{(votes_N >= needed).mean():.4f}" for needed in (1, 2, 3))
    print(f"{len(texts):,} texts of {characters:.0f} characters; English by any, two, three: {shares}")


def _hashes(pictures: list[NDArray[np.uint8]], rounds: int) -> None:
    _tell("hashes", len(pictures), _seconds(lambda: [*map(hashes, pictures)], rounds), "images")
    print(f"pictures of {np.mean([np.prod(picture.shape[:2]) for picture in pictures]) / 1e3:.0f} thousand pixels")


def _close(rows: int) -> None:
    """Close pairs among random hashes, and close ones of a million sealed images."""
    numbers = np.random.default_rng(0)
    plain = numbers.integers(0, 2**64, rows, np.uint64, endpoint=False)
    for most in (8, 10):
        seconds = _seconds(lambda most=most: close_pairs(plain, ~plain, most), 1)
        _tell(f"close pairs <= {most}", rows, seconds, "rows")
    sealed = numbers.integers(0, 2**64, 100_000, np.uint64, endpoint=False)
    _tell("close to 100k sealed", rows, _seconds(lambda: close_to(plain, sealed, ~sealed, 8), 1), "rows")


def _search(queries: int, rows: int, width: int, k: int) -> None:
    before, start = _peak_bytes(), time.perf_counter()
    seconds = _seconds(lambda: nearest(_unit(queries, width, 0), _pool(rows, width), k), 1)
    making = _seconds(lambda: [None for _ in _pool(rows, width)], 1)
    _tell(f"{queries:,} queries", rows, seconds - making, "rows")
    print(f"{2e-9 * queries * rows * width / (seconds - making):.1f} GFLOP/s; {time.perf_counter() - start:.0f} s wall")
    print(f"peak memory {_peak_bytes() / 1e9:.2f} GB, {before / 1e9:.2f} GB before")


def _pool(rows: int, width: int) -> Iterator[tuple[int, NDArray[np.float16]]]:
    for first in range(0, rows, CHUNK_ROWS):
        yield first, _unit(min(CHUNK_ROWS, rows - first), width, 1 + first).astype(np.float16)


def _unit(rows: int, width: int, seed: int) -> NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((rows, width), np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _duplicates(rows: int, width: int, clusters: list[int]) -> None:
    vectors = _grouped(rows, width)
    blocks = [vectors[start : start + CHUNK_ROWS].astype(np.float16) for start in range(0, rows, CHUNK_ROWS)]
    exact: set[tuple[int, int]] = set()
    for count in [0, *(count for count in clusters if count)]:
        found: set[tuple[int, int]] = set()

        def search(count: int = count, found: set = found) -> None:
            for pairs_P2 in similar_pairs(blocks, THRESHOLD, count or None):
                found.update(map(tuple, pairs_P2.tolist()))

        seconds = _seconds(search, 1)
        exact = exact or found
        _tell(f"{count} clusters" if count else "exact", rows, seconds, "rows")
        print(f"{len(found):,} pairs, {len(found & exact) / max(len(exact), 1):.4f} of the exact ones")


def _grouped(rows: int, width: int) -> NDArray[np.float32]:
    """Unit vectors in groups of related pictures; the last tenth are near-copies of the first."""
    numbers = np.random.default_rng(0)
    groups = _unit(max(rows // GROUP_ROWS, 1), width, 1)
    vectors = groups[numbers.integers(0, len(groups), rows)] + GROUP_SPREAD * _unit(rows, width, 2)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    copies = rows // 10
    cosine = numbers.uniform(0.9, 0.99, (copies, 1)).astype(np.float32)
    vectors[rows - copies :] = cosine * vectors[:copies] + np.sqrt(1 - cosine**2) * _unit(copies, width, 3)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _seconds(stage: Callable[[], object], rounds: int) -> float:
    """Fastest processor time of a call."""
    fastest = float("inf")
    for _ in range(rounds):
        start = time.process_time()
        stage()
        fastest = min(fastest, time.process_time() - start)
    return fastest


def _tell(stage: str, count: int, seconds: float, unit: str) -> None:
    rate, million = count / seconds, MILLION * seconds / count
    print(f"{stage:22s} {rate:12,.0f} {unit}/s {million:12,.1f} core-seconds per million")


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main()
