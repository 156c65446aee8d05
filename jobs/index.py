"""Look through the data of a run once and write down what is where.

  tips-ray index RUN.yaml [data.chunk_rows=32 ...]

Every job does this when it finds no index; this command does it ahead, without a cluster. Of local tars only headers
are read; on an object store payloads below 8 MiB are read along, so it takes as long as reading the tars once.
"""

import argparse
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.config import RunConfig
    from tips_ray.data.index import Index

SHOWN_REJECTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray index`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")


def run(arguments: argparse.Namespace) -> None:
    """Print what the data hold, and where the index is.

    Raises:
        ValueError: the config or the data are wrong.
    """
    from tips_ray import storage
    from tips_ray.config import RunConfig, load_config
    from tips_ray.data.index import index_of

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(RunConfig, arguments.config, arguments.overrides)
    index = index_of(config.data, storage.join(config.storage, "index"))
    print("\n".join(_lines(index, config)))


def _lines(index: "Index", config: "RunConfig") -> list[str]:
    uri = config.data.index or f"{config.storage.rstrip('/')}/index/{index.fingerprint}"
    lines = [f"{index.rows} rows in {index.shards.num_rows} shards and {len(index.chunks.rows)} chunks: {uri}"]
    for source in index.sources:
        columns = source.columns
        synthetic = ", ".join(columns.synthetic_captions) or "further captions of a row, if it has them"
        lines += [
            f"  {source.uri} ({source.format}): {source.rows} rows",
            f"    image: {columns.image}; web_caption: {columns.web_caption}; synthetic_captions: {synthetic}",
        ]
    rejects = index.rejects.to_pylist()
    lines += [f"{count} bad rows: {reason}" for reason, count in Counter(row["reason"] for row in rejects).items()]
    return lines + [f"  {row['path']} row {row['row']} {row['key']}" for row in rejects[:SHOWN_REJECTS]]
