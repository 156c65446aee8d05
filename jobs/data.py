"""Compare the lock of a training set with data: what is there, what has changed, what is missing.

  tips-ray data verify SELECTION                                reads every row where the selection says it is
  tips-ray data verify SELECTION --at SOURCE --out OUT          finds the rows in the data of another site

SELECTION is a folder that `tips-ray curate` has written, or its lock.json. SOURCE is a folder with a CSV, tars or
Parquet, local or s3://, with any names and in any order: rows are found by the sha256 of image and captions. OUT then
holds `selection`, which trains in the same order: a row that this site lacks keeps its place and counts as bad. Exits
with 1 if a row is missing or has changed; these are listed in problems.parquet.
"""

import argparse
from functools import partial

SHOWN = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray data`."""
    parser.add_argument("action", choices=("verify",))
    parser.add_argument("selection", metavar="SELECTION", help="folder of a selection, or its lock.json")
    parser.add_argument("--at", metavar="SOURCE", help="data of this site")
    parser.add_argument("--out", metavar="OUT", help="folder or s3:// prefix for the selection of this site")
    parser.add_argument("--cpus", type=int, default=1, help="CPUs that read and decode; default: 1")


def run(arguments: argparse.Namespace) -> int:
    """Print rows by state.

    Returns:
        1 if a row is missing or has changed, else 0.

    Raises:
        ValueError: the lock is damaged, or the data cannot be read.
    """
    if bool(arguments.at) != bool(arguments.out):
        raise ValueError("--at and --out belong together: the data of this site, and a folder for their selection")
    from tips_ray import storage
    from tips_ray.config import SourceConfig
    from tips_ray.launch.data_lock import relocate, verify, write_problems

    tell = partial(print, flush=True)
    if arguments.at:
        found = relocate(arguments.selection, SourceConfig(uri=arguments.at), arguments.out, arguments.cpus, tell)
    else:
        found = verify(arguments.selection, arguments.cpus, tell)
    total = found.counts.total()
    print(f"{total:,} rows: " + ", ".join(f"{count:,} {state}" for state, count in found.counts.most_common()))
    for row in found.first_problems(SHOWN):
        print(f"  {row['file']} row {row['row']} {row['key']}: {row['state']}")
    place = storage.join(arguments.out or "out", "problems.parquet")
    if not found.is_whole:
        write_problems(found, place)
        print(f"problems   {place}")
    if arguments.at:
        share = found.counts["there"] / max(total, 1)
        place = storage.join(arguments.out, "selection")
        rest = "" if found.is_whole else "; the others are bad rows"
        print(f"selection  {place}: {share:.1%} of the rows are there{rest}")
    return 0 if found.is_whole else 1
