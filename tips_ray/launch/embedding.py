"""Embed every image of a source on Ray: find the missing files, run the actors, report progress."""

import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from ray.exceptions import RayError

from tips_ray import storage
from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.data.chunk_files import ChunkFiles
from tips_ray.data.index import Index
from tips_ray.data.index_folder import index_of
from tips_ray.embedding.embed_pipeline import EmbedInputs, embed_stream
from tips_ray.embedding.embedder import layout_of
from tips_ray.errors import RunFailedError, RunInterrupted, last_line
from tips_ray.evaluation.encoder_place import EncoderPlace
from tips_ray.evaluation.load_encoder import load_encoder
from tips_ray.launch import cluster
from tips_ray.launch.noise import quietly_begun
from tips_ray.launch.progress import tenths

BESIDE_CPUS = 1
"""CPUs of the tasks that write."""
GOES_ON = "the same command goes on where it stopped"
Tell = Callable[[str], None]
"""Shows the user one line."""


def embed_source(model: str, config: EmbeddingConfig, out: str, tell: Tell) -> EmbedInputs:
    """Embed the rows that have no embeddings yet; returns the inputs, with the folder of the embeddings.

    Args:
        model: run, checkpoint, folder, npz or timm:NAME.
        config: source and form of the embeddings.
        out: folder or s3:// prefix.
        tell: gets a line about how much there is to do, then progress lines.

    Raises:
        ValueError: model, source or config are wrong, `out` holds embeddings of something else, or there is no room
            for an actor.
        RunFailedError: embedding stopped; files made so far are kept.
        RunInterrupted: Ctrl-C; files made so far are kept.
    """
    inputs, index = embed_inputs(model, config, out)
    missing = inputs.folder.missing(index, inputs.layout.row_bytes)
    due = sum(int(index.chunks.rows[chunk]) for file in missing for chunk in file)
    tell(f"data       {index.rows:,} rows; {index.rows - due:,} have their embeddings")
    if missing:
        embed_all(inputs, missing, tell)
    return inputs


def embed_inputs(model: str, config: EmbeddingConfig, out: str) -> tuple[EmbedInputs, Index]:
    """Inputs of every task and the index of the source. Writes `embedding.json`, starts no Ray.

    Raises:
        ValueError: model, source or config are wrong, or `out` holds embeddings of something else.
    """
    data, folder = config.data, ChunkFiles(out)
    _require_outside(folder.uri, config.source.uri)
    index = index_of(data, storage.join(folder.uri, "index"))
    encoder = load_encoder(folder.checkpoint_of(model) or model, config.image_size_px)
    layout, size_px = layout_of(encoder, config), encoder.image_size_px
    options = config.model_dump(include={"patches", "captions", "dtype", "max_image_bytes", "max_image_pixels"})
    decides = {"weights": encoder.fingerprint, "data": folder.data_of(index), "image_size_px": size_px, **options}
    folder.check(decides)
    place = EncoderPlace.of(model, encoder)
    note = {"model": model, "checkpoint": place.model if encoder.checkpoint_uri else None}
    folder.claim(decides, {**note, "source": config.source.uri, "columns": layout.shapes})
    return EmbedInputs(config, place, layout, index.uri, folder, encoder.text_embeddings), index


@dataclass
class Made:
    """Counts of embedding so far."""

    files: int = 0
    rows: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Bad rows by reason: the error up to its first colon."""

    def add(self, batch: dict[str, Any]) -> None:
        """Count the files of a batch."""
        self.files += len(batch["rows"])
        self.rows += int(batch["rows"].sum())
        self.reasons.update(error.partition(":")[0] for errors in batch["errors"] for error in errors)


def embed_all(inputs: EmbedInputs, missing: Sequence[range], tell: Tell) -> Made:
    """Make the files `missing`; `tell` gets progress lines.

    Raises:
        ValueError: this machine or the cluster has no room for one actor.
        RunFailedError: embedding stopped.
    """
    made, config = Made(), inputs.config
    cluster.require_room_for_actor(config, BESIDE_CPUS + 1)
    cluster.connect(config.actors * config.cpus_per_actor + config.data_cpus + BESIDE_CPUS)
    try:
        _follow(inputs, missing, made, tell)
    except KeyboardInterrupt:
        raise RunInterrupted(f"interrupted; {GOES_ON}") from None
    except RayError as error:
        raise RunFailedError(f"embedding stopped: {last_line(error)}; {GOES_ON}") from None
    if made.reasons:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in made.reasons.most_common())
        tell(f"embeddings {made.reasons.total():,} rows have no image, see their column error: {counts}")
    return made


def _follow(inputs: EmbedInputs, missing: Sequence[range], made: Made, tell: Tell) -> None:
    started, is_due = time.monotonic(), tenths(len(missing))
    cluster.quiet_data()
    for batch in quietly_begun(embed_stream(inputs, missing).iter_batches(batch_size=None, batch_format="numpy")):
        made.add(cast("dict[str, Any]", batch))
        if is_due(made.files):
            rate = made.rows / (time.monotonic() - started)
            tell(f"embeddings {made.rows:,} rows, {made.files} of {len(missing)} files, {rate:.0f}/s")


def _require_outside(out: str, source: str) -> None:
    plain = re.split(r"/[^/]*[*?{]", storage.resolved(source))[0]
    if f"{out}/".startswith(f"{plain}/"):
        raise ValueError(f"OUT ({out}) must not lie in SOURCE ({source}): it would become a part of the data")
