"""Embed every image of a source, each once; the same command again makes only what is missing.

  tips-ray embed out/runs/photos photos/ out/photos-embeddings
  tips-ray embed out/tips-b14 's3://bucket/{000..099}.tar' s3://bucket/embeddings gpus_per_actor=1 actors=8
  tips-ray embed timm:vit_base_patch14_dinov2 photos/ out/dinov2 image_size_px=224 patches=mean

MODEL is what tips-ray evaluate takes; SOURCE a folder with a CSV, tars or Parquet, local or s3://; OUT a folder or an
s3:// prefix. Keys: patches=mean or all, captions=true, dtype=float16, image_size_px, source.columns.image=NAME, actors,
gpus_per_actor, data_cpus and the others of tips_ray/config/embedding.py. RAY_ADDRESS names a cluster.

  pyarrow.dataset.dataset("OUT/embeddings").to_table(columns=["key", "cls_web"])
"""

import argparse
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tips_ray.config.embedding import EmbeddingConfig
    from tips_ray.data.index import Index
    from tips_ray.embedding.embed_pipeline import EmbedInputs

BESIDE_CPUS = 1
"""Of the tasks that write."""
GOES_ON = "the same command goes on where it stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Arguments of `tips-ray embed`."""
    parser.add_argument("model", metavar="MODEL", help="run, checkpoint, folder, npz or timm:NAME")
    parser.add_argument("source", metavar="SOURCE", help="folder, file or pattern with * and {000..099}, or s3://")
    parser.add_argument("out", metavar="OUT", help="folder or s3:// prefix for the embeddings")
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="keys of the config, dotted")


def run(arguments: argparse.Namespace) -> None:
    """Make the files that are missing, with a line now and then.

    Raises:
        ValueError: model, source or config are wrong, or OUT holds embeddings of something else.
        RunFailedError: embedding stopped; what is made is kept.
    """
    from tips_ray.config.embedding import EmbeddingConfig
    from tips_ray.config.load import override, override_values

    values = override_values(arguments.overrides)
    config = override(EmbeddingConfig, {"source": {"uri": arguments.source}}, values)
    inputs, index = embed_inputs(arguments.model, config, arguments.out)
    missing = inputs.folder.missing(index, inputs.layout)
    due = sum(int(index.chunks.rows[chunk]) for file in missing for chunk in file)
    print(f"data       {index.rows:,} rows; {index.rows - due:,} have their embeddings", flush=True)
    if missing:
        embed_all(inputs, missing)
    print(f"embeddings {inputs.folder.rows_uri}: {', '.join(inputs.layout.images)}")


def embed_inputs(model: str, config: "EmbeddingConfig", out: str) -> "tuple[EmbedInputs, Index]":
    """Everything but Ray, with `embedding.json` written.

    Raises:
        ValueError: model, source or config are wrong, or `out` holds embeddings of something else.
    """
    from tips_ray import storage
    from tips_ray.data.index import fingerprint as data_fingerprint
    from tips_ray.data.index import index_of, index_uri
    from tips_ray.embedding.embed_pipeline import EmbedInputs
    from tips_ray.embedding.embedder import layout_of
    from tips_ray.embedding.folder import EmbeddingFolder
    from tips_ray.evaluation.encoder_place import EncoderPlace
    from tips_ray.evaluation.load_encoder import load_encoder

    data, folder = config.data, EmbeddingFolder(out)
    _require_outside(folder.uri, config.source.uri)
    mark = data_fingerprint(data)
    encoder = load_encoder(folder.checkpoint_of(model) or model, config.image_size_px)
    layout, size_px = layout_of(encoder, config), encoder.image_size_px
    options = config.model_dump(include={"patches", "captions", "dtype", "max_image_bytes", "max_image_pixels"})
    decides = {"weights": encoder.fingerprint, "data": mark, "image_size_px": size_px, **options}
    folder.check(decides)
    below = storage.join(folder.uri, "index")
    index = index_of(data, below)
    place = EncoderPlace.of(model, encoder)
    note = {"model": model, "checkpoint": place.model if encoder.checkpoint_uri else None}
    folder.claim(decides, {**note, "source": config.source.uri, "columns": layout.shapes})
    return EmbedInputs(config, place, layout, index_uri(data, index, below), folder), index


@dataclass
class Made:
    """What embedding has done so far."""

    files: int = 0
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Bad rows; what follows a colon in an error is about that row alone."""

    def add(self, batch: dict[str, Any]) -> None:
        self.files += len(batch["rows"])
        self.rows += int(batch["rows"].sum())
        self.reasons.update(error.partition(":")[0] for errors in batch["errors"] for error in errors)


def embed_all(inputs: "EmbedInputs", missing: "Sequence[range]") -> Made:
    """Make the files `missing`, with a line now and then.

    Raises:
        ValueError: this machine or the cluster has no room for one actor.
        RunFailedError: embedding stopped.
    """
    from ray.exceptions import RayError

    from tips_ray.errors import RunFailedError, RunInterrupted, last_words
    from tips_ray.launch import cluster as ray_cluster

    made, config = Made(), inputs.config
    ray_cluster.require_room_for_actor(config, BESIDE_CPUS + 1)
    ray_cluster.connect(config.actors * config.cpus_per_actor + config.data_cpus + BESIDE_CPUS)
    try:
        _follow(inputs, missing, made)
    except KeyboardInterrupt:
        raise RunInterrupted(f"interrupted; {GOES_ON}") from None
    except RayError as error:
        raise RunFailedError(f"embedding stopped: {last_words(error)}; {GOES_ON}") from None
    if made.reasons:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in made.reasons.most_common())
        print(f"embeddings {made.reasons.total():,} rows have no image, see their column error: {counts}", flush=True)
    return made


def _follow(inputs: "EmbedInputs", missing: "Sequence[range]", made: Made) -> None:
    from tips_ray.embedding.embed_pipeline import embed_stream
    from tips_ray.launch.cluster import quiet_data
    from tips_ray.launch.progress import tenths

    started, is_due = time.monotonic(), tenths(len(missing))
    quiet_data()
    for batch in embed_stream(inputs, missing).iter_batches(batch_size=None, batch_format="numpy"):
        made.add(cast("dict[str, Any]", batch))
        if is_due(made.files):
            rate = made.rows / (time.monotonic() - started)
            print(f"embeddings {made.rows:,} rows, {made.files} of {len(missing)} files, {rate:.0f}/s", flush=True)


def _require_outside(out: str, source: str) -> None:
    from tips_ray import storage

    plain = re.split(r"/[^/]*[*?{]", storage.resolved(source))[0]
    if f"{out}/".startswith(f"{plain}/"):
        raise ValueError(f"OUT ({out}) must not lie in SOURCE ({source}): it would become a part of the data")
