"""Choose a training set from raw pairs of images and captions: what is kept, what is dropped, and why.

  tips-ray curate CURATION.yaml [similarity.min=0.25 duplicates.keep=first ...]
  tips-ray curate CURATION.yaml --for RUN --task retrieval base=SELECTION    adds more of what RUN retrieves worst

Keys: source.uri and out; thresholds of images, fields, blocked_domains, language, similarity, near, sealed,
duplicates, most_repeats; encoder (any that tips-ray evaluate takes); see tips_ray/config/curation.py. Signals and
embeddings are kept in `out`: another threshold reads them again and makes only what is missing. The same command again
goes on where it was stopped, and the same data and thresholds give the same files. RAY_ADDRESS names a cluster.

The selection it writes is a source: `tips-ray pretrain RUN.yaml 'data.sources=[{uri: SELECTION}]'`. Images are not
copied, unless few rows of a shard are kept (rewrite_below). Its lock.json is checked by `tips-ray data verify`.
"""

import argparse
from functools import partial
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray curate`."""
    parser.add_argument("config", type=Path, metavar="CURATION.yaml", help="data and thresholds")
    parser.add_argument("--for", dest="model", metavar="RUN", help="encoder; add what it is weakest at (`weakest`)")
    parser.add_argument("--task", choices=("retrieval",), default="retrieval", help="at which it is weakest")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")


def run(arguments: argparse.Namespace) -> None:
    """Write the selection and its report, and print rows by stage.

    Raises:
        ValueError: config or data are wrong, or no row is kept.
        RunFailedError: the work stopped; what was made is kept.
    """
    from tips_ray.config import load_config
    from tips_ray.config.curation import CurationConfig

    named = [f"encoder={arguments.model}"] if arguments.model else []
    config = load_config(CurationConfig, arguments.config, [*arguments.overrides, *named])
    if arguments.model and not config.weakest:
        raise ValueError("--for needs weakest.validation in the config: pairs on which RUN is measured")
    from tips_ray.launch.curation import curate

    made = curate(config, partial(print, flush=True))
    share = made.lock["kept_share_of_chunks"]
    is_new = made.lock["written"] == "shards"
    written = "images are in new shards" if is_new else f"a run reads {1 / share:.2g} times the bytes that it uses"
    print(f"selection  {made.selection}: {made.lock['rows']:,} rows; {written}")
    print(f"report     {made.report}")
    print(f"next       tips-ray pretrain RUN.yaml 'data.sources=[{{uri: {made.selection}}}]'")
