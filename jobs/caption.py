"""Caption the images of a run before it starts, each once; the same command again makes only what is missing.

  tips-ray caption RUN.yaml [KEY=VALUE ...]     e.g. resources.captioners=8

The run then reads them with captions.source=store. With captions.source=live this command is not needed.
"""

import argparse
from functools import partial
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray caption`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")


def run(arguments: argparse.Namespace) -> None:
    """Caption all data of the config in the order in which its run reads them.

    Raises:
        ValueError: config, data or captioner are wrong.
        RunFailedError: captioning stopped; finished captions are kept.
    """
    from tips_ray.config import RunConfig, load_config
    from tips_ray.launch.data_jobs import caption_data

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    folder = caption_data(config, partial(print, flush=True))
    print(f"captions   {folder}\nnext: tips-ray pretrain {arguments.config} captions.source=store")
