"""Embed every image of a source, each once; the same command again makes only what is missing.

  tips-ray embed out/runs/photos photos/ out/photos-embeddings
  tips-ray embed out/tips-b14 's3://bucket/{000..099}.tar' s3://bucket/embeddings gpus_per_actor=1 actors=8
  tips-ray embed timm:vit_base_patch14_dinov2 photos/ out/dinov2 image_size_px=224 patches=mean

MODEL is any model that tips-ray evaluate takes. SOURCE is a folder with a CSV, tars or Parquet, local or s3://. OUT is
a folder or s3:// prefix. Keys: patches=mean or all, captions=true, dtype=float16, image_size_px, actors, data_cpus,
gpus_per_actor, source.columns.image=NAME and others of tips_ray/config/embedding.py. RAY_ADDRESS names a cluster.

  pyarrow.dataset.dataset("OUT/embeddings").to_table(columns=["key", "cls_web"])
"""

import argparse
from functools import partial


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray embed`."""
    parser.add_argument("model", metavar="MODEL", help="run, checkpoint, folder, npz or timm:NAME")
    parser.add_argument("source", metavar="SOURCE", help="folder, file or pattern with * and {000..099}, or s3://")
    parser.add_argument("out", metavar="OUT", help="folder or s3:// prefix for the embeddings")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")


def run(arguments: argparse.Namespace) -> None:
    """Make the missing files, and print a line now and then.

    Raises:
        ValueError: model, source or config are wrong, or OUT holds embeddings made from other inputs.
        RunFailedError: embedding stopped; finished files are kept.
    """
    from tips_ray.config.embedding import EmbeddingConfig
    from tips_ray.config.load import override, override_values

    values = override_values(arguments.overrides)
    config = override(EmbeddingConfig, {"source": {"uri": arguments.source}}, values)
    from tips_ray.launch.embedding import embed_source

    inputs = embed_source(arguments.model, config, arguments.out, partial(print, flush=True))
    print(f"embeddings {inputs.folder.rows_uri}: {', '.join(inputs.layout.images)}")
