"""Compare a lock with data on Ray: with those that it names, or with those of another site."""

import numpy as np
import pyarrow as pa
from ray.exceptions import RayError

from tips_ray import storage
from tips_ray.config import SourceConfig
from tips_ray.config.curation import CurationConfig
from tips_ray.curation.lock import OF_ERRORS, PROBLEMS, Comparison, Site
from tips_ray.curation.pipeline import faults_stream
from tips_ray.curation.selection import read_lock, read_parts, write_places
from tips_ray.data.index_folder import check_apart, index_of
from tips_ray.data.sources.selection import LOCK, SUFFIXES
from tips_ray.data.tables import write_table
from tips_ray.errors import RunFailedError, described
from tips_ray.launch.curation_files import GOES_ON, Tell, connect, follow, made_signals, tables


def verify(lock_uri: str, data_cpus: int, tell: Tell) -> Comparison:
    """Read every row of a selection where its places say, and compare hashes.

    Args:
        lock_uri: folder of the selection, or its lock.
        data_cpus: CPUs that read.
        tell: gets progress lines.

    Raises:
        ValueError: the lock or its files are damaged.
        RunFailedError: reading stopped.
    """
    lock, found = read_lock(lock_uri), Comparison()
    config = CurationConfig(source=SourceConfig(uri=lock["folder"]), out=lock["folder"], data_cpus=data_cpus)
    connect(config)
    try:
        index = index_of(config.data, storage.join(lock["folder"], "index"))
        errors = follow(faults_stream(index.uri, len(lock["files"]), data_cpus), len(lock["files"]), "verified", tell)
    except RayError as error:
        raise RunFailedError(f"verification stopped: {described(error)}") from None
    for (name, part), errors_M in zip(read_parts(lock), errors, strict=True):
        found.add(name, part.rows, np.array([OF_ERRORS.get(error, error.partition(":")[0]) for error in errors_M]))
    return found


def relocate(lock_uri: str, source: SourceConfig, out: str, data_cpus: int, tell: Tell) -> Comparison:
    """Find the rows of a lock in the data of another site, and write a selection of them that trains in the same order.

    Args:
        lock_uri: folder of the selection, or its lock.
        source: data of this site, in any format, shards and order.
        out: folder for the selection; `signals` of the data are kept below it.
        data_cpus: CPUs that read and decode.
        tell: gets progress lines.

    Raises:
        ValueError: the lock or its files are damaged, or the data cannot be read.
        RunFailedError: reading stopped; what was made is kept.
    """
    lock, found, out = read_lock(lock_uri), Comparison(), storage.resolved(out)
    config = CurationConfig(source=source, out=out, language=None, data_cpus=data_cpus)
    connect(config)
    index = index_of(config.data, storage.join(out, "index"))
    check_apart("the folder of the selection", out, index)
    storage.mark_output(out)
    try:
        signals = pa.concat_tables(list(tables(made_signals(config, index, storage.join(out, "signals"), tell))))
    except RayError as error:
        raise RunFailedError(f"reading stopped: {described(error)}; {GOES_ON}") from None
    site, place = Site(index, signals), storage.join(out, "selection")
    for name, part in read_parts(lock):
        state_M, places = site.compare(part.rows)
        found.add(name, part.rows, state_M)
        write_places(place, name, places, index.sources[0].columns)
        storage.write_bytes(
            storage.join(place, name + SUFFIXES[0]), storage.read_bytes(f"{lock['folder']}/{name}.rows")
        )
    storage.write_text(storage.join(place, LOCK), storage.read_text(storage.join(lock["folder"], LOCK)))
    return found


def write_problems(found: Comparison, uri: str) -> None:
    """Write the rows that are not there as they were: Parquet with the columns of `PROBLEMS`."""
    write_table(uri, pa.concat_tables([PROBLEMS.empty_table(), *found.problems]))
