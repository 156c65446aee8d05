"""Scan the data of a run once and write an index of their rows.

  tips-ray index RUN.yaml [data.chunk_rows=32 ...]
  tips-ray index RUN.yaml --decode    decodes every image on Ray, and lists the bad ones ahead of a run

Every job does this if it finds no index; this command does it before, on the cluster of RAY_ADDRESS if that is set. It
reads only headers of local tars. On an object store it also reads payloads below 8 MiB, so it takes as long as reading
the tars once. It shows three rows of each source, counts bad ones and those without captions among up to 512 sampled
rows, and warns where their captions look like something else.
"""

import argparse
import logging
from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tips_ray.config import CaptionsConfig, RunConfig
    from tips_ray.data.index import Index

SHOWN_REJECTS = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray index`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")
    parser.add_argument("--decode", action="store_true", help="decode every image, on Ray, to find the bad ones")


def run(arguments: argparse.Namespace) -> None:
    """Print the contents of the data, and where the index is.

    Raises:
        ValueError: the config or the data are wrong.
    """
    from tips_ray.config import RunConfig, load_config
    from tips_ray.launch.data_jobs import index_data

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    config = load_config(RunConfig, arguments.config, arguments.overrides)
    index = index_data(config, arguments.decode, partial(print, flush=True))
    print("\n".join(_lines(index, config)))


def _lines(index: "Index", config: "RunConfig") -> list[str]:
    from tips_ray.data.index import bad_rows_and_damages, unread_bytes

    lines = [f"{index.rows} rows in {index.shards.num_rows} shards and {len(index.chunks.rows)} chunks: {index.uri}"]
    for number, source in enumerate(index.sources):
        columns = source.columns
        synthetic = ", ".join(columns.synthetic_captions) or "the captions of an image after its first"
        lines += [
            f"  {source.uri} ({source.format}): {source.rows} rows",
            f"    image: {columns.image}; web_caption: {columns.web_caption}; synthetic_captions: {synthetic}",
            *_sample_lines(index, number, config.captions),
            *_file_lines(config.data.sources[number].uri, index, number),
        ]
    rejects, damages = (table.to_pylist() for table in bad_rows_and_damages(index))
    lines += [f"{count} bad rows: {reason}" for reason, count in Counter(row["reason"] for row in rejects).items()]
    lines += [f"  {row['path']} row {row['row']} {row['key']}" for row in rejects[:SHOWN_REJECTS]]
    lines += [f"{row['path']}: {row['reason']}" for row in damages]
    lines += [f"{path}: {lost:,} bytes at its end are not used" for path, lost in unread_bytes(index).items() if lost]
    if len(rejects) > config.data.max_bad_fraction * index.rows:
        share = config.data.max_bad_fraction
        lines.append(f"{len(rejects)} of {index.rows} rows are bad; a run stops above data.max_bad_fraction ({share})")
    return lines


def _sample_lines(index: "Index", source: int, captions: "CaptionsConfig") -> list[str]:
    """Three examples, bad rows, rows without captions, and warnings about captions that look like something else."""
    from tips_ray.data import caption_sample as sample

    first, rows = index.first_rows(source), sample.sampled_rows(index, source)
    good = next((row for row in first if not row["error"]), None)
    lines = [sample.described_row(index, row) for row in sample.examples(rows, good)]
    read = sample.joined(rows, first)
    lines += [sample.bad_rows(index, read)]
    lines += [f"warning: {text}" for text in sample.warnings(index, rows)]
    lines += [f"all of the first {len(first)} rows are bad: {first[0]['error']}"] if good is None else []
    lines += [*sample.gaps(index, read, captions), sample.unused_captions(index, source)]
    return [f"    {line}" for line in lines if line]


def _file_lines(uri: str, index: "Index", source: int) -> list[str]:
    """What files and images are left out, and which splits are read."""
    from tips_ray.data.index import empty_shards, unused_images
    from tips_ray.data.sources import left_out
    from tips_ray.data.sources.layouts import splits_of

    shards = index.shards_of(source)
    splits = [splits_of(shard.path) for shard in shards if shard.format == "folder"]
    others = left_out(uri, shards, index.sources[source].columns)
    found = [empty_shards(index, source), *others, unused_images(index, source), *splits]
    return [f"    {text}" for text in found if text]
