"""Captions by the hash of their image: export to Parquet or JSON lines, import from these or CSV."""

import csv
import json
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from tips_ray import storage
from tips_ray.data.captions.join import missing_chunks, place_of
from tips_ray.data.captions.store import CaptionStore, ChunkCaptions, image_sha256
from tips_ray.data.index import Index
from tips_ray.data.sources.parquet_types import refuse_pickles

SCHEMA = pa.schema(
    [("sha256", pa.string()), ("captions", pa.list_(pa.string())), ("shard", pa.string()), ("row", pa.int64())]
)
BLOCK_ROWS = 65_536
MOST_CHARACTERS = 200
"""Longest reason in an error."""
IMPORT_THREADS = 16
"""Chunks whose images are read at the same time."""
TEXT = "utf-8-sig"
"""Encoding of text files; spreadsheets begin theirs with a byte order mark."""
Row = dict[str, Any]


def export(store: CaptionStore, target: str) -> tuple[int, int]:
    """Write every row that has captions to `target` (.parquet or .jsonl); returns rows written and rows left out.

    Raises:
        ValueError: `target` ends otherwise; DamagedError: an object cannot be read.
    """
    writer = _of_suffix(target, {".parquet": _write_parquet, ".jsonl": _write_lines})
    left_out = 0

    def rows() -> Iterator[Row]:
        nonlocal left_out
        for name in store.shard_names():
            for shard, _, chunk in store.chunks(name):
                left_out += sum(map(bool, chunk.error))
                yield from _rows(shard.path, chunk)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "captions")
        written = writer(path, rows())
        storage.upload(path, target)
    return written, left_out


def captions_by_hash(source: str) -> dict[bytes, list[str]]:
    """Captions of a file with columns sha256 and captions (a list, or in CSV its JSON, or one text).

    All of them are held in memory: some 400 bytes a row.

    Raises:
        ValueError: the file is of another kind or damaged, lacks these columns, or holds pickles; the row is named.
    """
    reader = _of_suffix(source, {".parquet": partial(_read_parquet, source), ".jsonl": _read_lines, ".csv": _read_csv})
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "captions")
        storage.download(source, path)
        return dict(_entries(source, reader(path)))


class Imported(NamedTuple):
    """What an import did to the chunks of an index that had no captions."""

    rows: int
    """Rows of the chunks that have captions now."""
    chunks: int
    """Chunks that have captions now."""
    missing: int
    """Chunks that still have none: one of their images is not known."""


def import_captions(store: CaptionStore, index: Index, known: dict[bytes, list[str]]) -> Imported:
    """Give each chunk without captions those that are known for its images; a chunk gets all of its captions or none.

    Args:
        store: gets the captions.
        index: its images are read.
        known: captions by the sha256 of their image, as `captions_by_hash` returns them.
    """
    places = missing_chunks(index, store).tolist()
    with ThreadPoolExecutor(IMPORT_THREADS) as pool:
        rows = list(pool.map(lambda place: _import_chunk(store, index, place, known), places))
    chunks = sum(bool(count) for count in rows)
    return Imported(sum(rows), chunks, len(places) - chunks)


def _import_chunk(store: CaptionStore, index: Index, number: int, known: dict[bytes, list[str]]) -> int:
    """Rows of the chunk of this number in the index; 0 where it got no captions."""
    rows = index.read(number)
    sha256, errors = image_sha256(row["image"] for row in rows), [row["error"] for row in rows]
    chunk = _rekeyed(index.chunk(number).row, sha256, errors, known)
    return len(rows) if chunk and store.write(*place_of(index, number), chunk) else 0


def _rekeyed(row: int, sha256: list[bytes], errors: list[str], known: dict[bytes, list[str]]) -> ChunkCaptions | None:
    """A chunk with the captions that are known for its images; None where one of its good images has none."""
    found = [[] if error else known.get(digest, []) for digest, error in zip(sha256, errors, strict=True)]
    if any(not captions and not error for captions, error in zip(found, errors, strict=True)):
        return None
    return ChunkCaptions(row, sha256, found, errors)


def _rows(path: str, chunk: ChunkCaptions) -> Iterator[Row]:
    for number, (digest, captions, error) in enumerate(zip(*chunk[1:], strict=True)):
        if not error:
            yield {"sha256": digest.hex(), "captions": captions, "shard": path, "row": chunk.row + number}


def _write_parquet(path: Path, rows: Iterator[Row]) -> int:
    written = 0
    with pq.ParquetWriter(path, SCHEMA, compression="zstd") as writer:
        while block := list(islice(rows, BLOCK_ROWS)):
            writer.write_table(pa.Table.from_pylist(block, SCHEMA))
            written += len(block)
    return written


def _write_lines(path: Path, rows: Iterator[Row]) -> int:
    written = 0
    with open(path, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            written += 1
    return written


def _read_parquet(source: str, path: Path) -> Iterator[Row]:
    with pq.ParquetFile(path) as file:
        refuse_pickles(file.schema_arrow, source)
        for batch in file.iter_batches(BLOCK_ROWS):
            yield from batch.to_pylist()


def _read_lines(path: Path) -> Iterator[Row]:
    with open(path, encoding=TEXT) as file:
        yield from map(json.loads, filter(str.strip, file))


def _read_csv(path: Path) -> Iterator[Row]:
    with open(path, encoding=TEXT, newline="") as file:
        for row in csv.DictReader(file):
            yield {**row, "captions": _texts(row.get("captions") or "")}


def _texts(cell: str) -> str | list[str]:
    """A list where the cell is one of texts in JSON; a caption may begin with a bracket too."""
    try:
        found = json.loads(cell) if cell.startswith("[") else cell
    except (json.JSONDecodeError, RecursionError):
        return cell
    return found if all(isinstance(text, str) for text in found) else cell


def _entries(source: str, rows: Iterator[Row]) -> Iterator[tuple[bytes, list[str]]]:
    number = 0
    try:
        for number, row in enumerate(rows, start=1):
            yield _entry(source, number, row if isinstance(row, dict) else {})
    except (pa.ArrowException, OSError, csv.Error, UnicodeDecodeError, json.JSONDecodeError) as error:
        reason = " ".join(str(error).split())[:MOST_CHARACTERS]
        raise ValueError(f"{source} behind row {number}: it cannot be read: {reason}") from None


def _entry(source: str, number: int, row: Row) -> tuple[bytes, list[str]]:
    captions, digest = row.get("captions"), row.get("sha256")
    texts = [captions] if isinstance(captions, str) else captions
    try:
        key = digest if isinstance(digest, bytes) else bytes.fromhex(str(digest))
    except ValueError:
        key = b""
    if len(key) != 32 or not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise ValueError(
            f"{source} row {number}: it needs sha256 (64 hexadecimal digits of the image file's hash) and captions "
            f"(a list of texts), there are {', '.join(map(str, row)) or 'no columns'}; rename the columns"
        )
    return key, [text for text in map(str.strip, texts) if text]


def _of_suffix(uri: str, choices: dict[str, Any]) -> Any:
    suffix = Path(uri).suffix.lower()
    if suffix not in choices:
        raise ValueError(f"{uri}: the name must end with {' or '.join(choices)}, it ends with {suffix!r}")
    return choices[suffix]
