"""Caption the images of a run ahead of it, each once; the same command again makes only what is missing.

  tips-ray caption RUN.yaml [KEY=VALUE ...]     e.g. resources.captioners=8

The run then takes them with captions.source=store. With captions.source=live no such command is needed.
"""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray caption`."""
    parser.add_argument("config", type=Path, metavar="RUN.yaml", help="config of the run")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")


def run(arguments: argparse.Namespace) -> None:
    """Caption all data of the config in the order in which its run reads them.

    Raises:
        ValueError: config, data or captioner are wrong.
        RunFailedError: captioning stopped; what is made is kept.
    """
    from ray.exceptions import RayError

    from tips_ray import storage
    from tips_ray.captioning.stream import READ_CPUS, CaptionInputs, due_chunks
    from tips_ray.config import RunConfig, load_config
    from tips_ray.data.index import index_of, index_uri
    from tips_ray.data.stream import CaptionAccess
    from tips_ray.errors import RunFailedError
    from tips_ray.launch import cluster as ray_cluster
    from tips_ray.launch.captions import caption_all, caption_store, why_stopped

    config = load_config(RunConfig, arguments.config, arguments.overrides)
    store, captioner = caption_store(config)
    folder = storage.join(config.storage, "index")
    index = index_of(config.data, folder)
    due = due_chunks(index, config, store)
    total = len(index.chunks.rows)
    print(
        f"data       {index.rows:,} rows in {total:,} chunks; {total - due.num_rows:,} have their captions", flush=True
    )
    if due.num_rows:
        ray_cluster.require_room_for_captioner(config, READ_CPUS)
        ray_cluster.connect(
            config.resources.captioners * config.resources.cpus_per_captioner + config.resources.data_cpus
        )
        uri = index_uri(config.data, index, folder)
        try:
            caption_all(CaptionInputs(config, captioner, uri, CaptionAccess(store)), due)
        except RayError as error:
            raise RunFailedError(f"{why_stopped(error)}; the same command goes on where it stopped") from None
    print(f"captions   {store.folder}\nnext: tips-ray pretrain {arguments.config} captions.source=store")
