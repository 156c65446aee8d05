"""Files that curation makes on Ray, with progress lines: what is there already is not made again."""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pyarrow as pa
from ray.data import Dataset

from tips_ray import storage
from tips_ray.config.curation import CurationConfig
from tips_ray.curation.pipeline import signals_stream
from tips_ray.curation.signals import ROW_BYTES, SignalFiles
from tips_ray.data.chunk_files import file_name, files
from tips_ray.data.index import Index
from tips_ray.data.tables import read_table
from tips_ray.launch import cluster
from tips_ray.launch.noise import quietly_begun
from tips_ray.launch.progress import tenths

DIGITS = 8
GOES_ON = "the same command goes on where it stopped"
BESIDE_CPUS = 1
"""CPUs of the tasks that write embeddings."""
Tell = Callable[[str], None]
"""Shows the user one line."""


def connect(config: CurationConfig) -> None:
    """Join the cluster, or start Ray here with room for all that a curation runs at once.

    Raises:
        ValueError: there is no cluster at RAY_ADDRESS, or Ray cannot be started.
    """
    cluster.require_cluster()
    cluster.connect(config.actors * config.cpus_per_actor + config.data_cpus + BESIDE_CPUS)


def made_signals(config: CurationConfig, index: Index, folder: str, tell: Tell) -> list[str]:
    """Make the missing files of signals; gives all of them in the order of the rows.

    Signals with other options, such as other fields, are others: each kind has a folder below `folder`.

    Raises:
        ValueError: `folder` holds signals of other data.
    """
    options = config.model_dump(include={"url_field", "max_image_bytes", "max_image_pixels"})
    options |= {"fields": sorted(config.fields), "language": config.language is not None}
    held = SignalFiles(storage.join(folder, hashlib.sha256(json.dumps(options).encode()).hexdigest()[:DIGITS]))
    held.claim({"data": index.fingerprint, **options}, {"source": index.sources[0].uri})
    missing = held.missing(index, ROW_BYTES)
    if missing:
        follow(signals_stream(config, index.uri, held, missing), len(missing), "signals", tell)
    return [storage.join(held.rows_uri, file_name(index, chunks)) for chunks in files(index, ROW_BYTES)]


def follow(stream: Dataset, total: int, what: str, tell: Tell) -> list[list[str]]:
    """Run a stream of files and tell how far it is; gives the errors of each file.

    Args:
        stream: with the columns `rows` and `errors`.
        total: number of its files.
        what: is made.
        tell: gets a line for each tenth.
    """
    begun, rows, found, is_due = time.monotonic(), 0, list[list[str]](), tenths(total)
    cluster.quiet_data()
    for batch in quietly_begun(stream.iter_batches(batch_size=None, batch_format="numpy")):
        made: Any = batch
        rows += int(made["rows"].sum())
        found += [list(errors) for errors in made["errors"]]
        if is_due(len(found)):
            rate = rows / (time.monotonic() - begun)
            tell(f"{what:10} {rows:,} rows, {len(found)} of {total} files, {rate:.0f}/s")
    return found


def tables(uris: Sequence[str], columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Parquet files, one after the other."""
    for uri in uris:
        yield read_table(uri, columns)
