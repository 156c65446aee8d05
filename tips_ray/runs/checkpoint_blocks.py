"""Files of a checkpoint in blocks with a sha256 each: a reader fetches and verifies only the blocks that it needs."""

import hashlib
import io
from collections import OrderedDict
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from tips_ray import storage

BLOCK_BYTES = 16 << 20
"""Of all blocks but a file's last: 27 GB have 1,700 of them, whose sha256 make the manifest 110 KB larger."""
AHEAD = 4
"""Most blocks of a file that are fetched at a time."""
MOST_HELD = 8
"""Most blocks of a file in memory: torch reads the end of a tensor's part first."""


def file_entry(path: Path) -> dict[str, Any]:
    """A local file's entry in the manifest: `bytes`, `sha256`, `block_bytes`, and `blocks`, the sha256 of each."""
    whole, blocks, size = hashlib.sha256(), [], 0
    with path.open("rb") as file:
        while block := file.read(BLOCK_BYTES):
            whole.update(block)
            blocks.append(hashlib.sha256(block).hexdigest())
            size += len(block)
    return {"bytes": size, "sha256": whole.hexdigest(), "block_bytes": BLOCK_BYTES, "blocks": blocks}


def has_blocks(files: Mapping[str, Mapping[str, Any]]) -> bool:
    """Whether every file of a manifest has blocks; earlier versions have a sha256 of the whole alone."""
    return all("blocks" in entry for entry in files.values())


class DamagedBlockError(ValueError):
    """A file is not that of the manifest; the message says in what."""


class BlockFile(io.RawIOBase):
    """A stored file as a stream that seeks; every byte read belongs to a block that was verified.

    Blocks of `spans` are fetched ahead of those that are read.
    """

    def __init__(self, uri: str, entry: Mapping[str, Any], spans: Iterable[tuple[int, int]]) -> None:
        """
        Args:
            uri: of the file.
            entry: its entry in the manifest, with blocks.
            spans: first byte and length of each part that will be read.

        Raises:
            DamagedBlockError: the file has another size.
            NotFoundError: there is none.
        """
        self.uri, self.entry, self._place = uri, entry, 0
        self._name = uri.rpartition("/")[2]
        size = storage.stat(uri).bytes
        if size != entry["bytes"]:
            raise DamagedBlockError(f"{self._name} has {size} bytes instead of {entry['bytes']}")
        block = entry["block_bytes"]
        self._needed = {n for first, length in spans for n in range(first // block, -(-(first + length) // block))}
        self._held: OrderedDict[int, Future[bytes]] = OrderedDict()
        self._pool = ThreadPoolExecutor(AHEAD)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._place = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._place, io.SEEK_END: self.entry["bytes"]}[whence]
        return self._place

    def readinto(self, buffer: Any, /) -> int:
        """Fill all of `buffer`, short only at the end of the file: torch asks once for all that it needs."""
        view, read = memoryview(buffer), 0
        while read < len(view) and self._place < self.entry["bytes"]:
            number, start = divmod(self._place, self.entry["block_bytes"])
            part = memoryview(self._block(number))[start : start + len(view) - read]
            view[read : read + len(part)] = part
            read, self._place = read + len(part), self._place + len(part)
        return read

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        super().close()

    def _block(self, number: int) -> bytes:
        """A block; those after it that will be read begin to come."""
        for near in [number, *(near for near in range(number + 1, number + AHEAD) if near in self._needed)]:
            if near not in self._held:
                self._held[near] = self._pool.submit(self._fetched, near)
        self._held.move_to_end(number)
        while len(self._held) > MOST_HELD:
            self._held.popitem(last=False)
        return self._held[number].result()

    def _fetched(self, number: int) -> bytes:
        first = number * self.entry["block_bytes"]
        block = storage.read_bytes(self.uri, first, min(first + self.entry["block_bytes"], self.entry["bytes"]))
        if hashlib.sha256(block).hexdigest() != self.entry["blocks"][number]:
            raise DamagedBlockError(f"the sha256 of {self._name} differs from the manifest's, at byte {first}")
        return block
