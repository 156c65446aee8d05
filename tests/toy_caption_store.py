"""Shards and captions for tests of the store; run as a program it writes chunks until it is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tips_ray.data.captions.store import CaptionedShard, CaptionStore, ChunkCaptions, image_sha256

FINGERPRINT = "0123456789abcdef"


def shard(number: int = 0, chunks: int = 3, etag: str = "e") -> CaptionedShard:
    return CaptionedShard(f"/data/{number:05d}.tar", 1000, etag, "webdataset", "jpg", 4, chunks)


def captions(number: int, writer: str = "x", rows: int = 4) -> ChunkCaptions:
    """Captions of chunk `number`; every text names its row and its writer."""
    numbers = range(4 * number, 4 * number + rows)
    texts = [[] if row % 7 == 5 else [f"{writer} row {row}"] for row in numbers]
    errors = ["truncated" if row % 7 == 5 else "" for row in numbers]
    return ChunkCaptions(4 * number, image_sha256(b"image %d" % row for row in numbers), texts, errors)


def kill_when(arguments: list[str], reached: Callable[[], bool]) -> None:
    """Start Python with `arguments` and kill it (SIGKILL) once `reached`."""
    tests = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}:{tests.parent}"}
    with subprocess.Popen([sys.executable, *arguments], env=environment) as process:
        while not reached():
            assert process.poll() is None, "it ended before the moment to kill it"
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)


def main(uri: str, writer: str, chunks: int) -> None:
    store, place = CaptionStore(uri, FINGERPRINT), shard(0, chunks)
    for chunk in range(chunks):
        store.write(place, chunk, captions(chunk, writer))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
