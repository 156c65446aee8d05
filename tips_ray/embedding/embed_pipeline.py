"""Ray Data pipeline: chunks without embeddings -> files in the order of the index, each written once.

Tasks read and decode, actors that keep their encoder encode, tasks write. Several actors may encode chunks of one file.
Blocks of one chunk keep their order, so that a writer's batch is a whole file.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from ray.data import ActorPoolStrategy, Dataset, TaskPoolStrategy

from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.data.chunk_files import ChunkFiles, chunks_per_file, file_name
from tips_ray.data.index_folder import opened_index
from tips_ray.embedding.decoded import DecodedChunk, decoded_chunk
from tips_ray.embedding.layout import Layout
from tips_ray.evaluation.encoder_place import EncoderPlace
from tips_ray.ray_data_adapter import handed_out, in_order
from tips_ray.storage import StorageError

READERS_PER_CPU = 2
"""Read-and-decode tasks per CPU: one waits for storage while the other decodes. With a whole CPU for each, Ray would
fuse them with the actors, which would then decode instead of encoding."""
WRITERS = 2
"""Number of concurrent write tasks."""
WRITE_CPUS = 1
"""CPUs of all write tasks together."""
MOST_BLOCKS = 20_000
"""Most blocks that hold the chunk numbers; one process hands them out."""
ENCODED = pa.schema([("chunk", pa.int64()), ("rows", pa.large_binary())])
"""Output of `EmbedActor`; `rows` is a table as an Arrow stream."""
_WRITTEN = pa.schema([("rows", pa.int64()), ("errors", pa.list_(pa.string()))])


@dataclass(frozen=True)
class EmbedInputs:
    """Inputs of every task of the stream."""

    config: EmbeddingConfig
    encoder: EncoderPlace
    layout: Layout
    index_uri: str
    folder: ChunkFiles
    text_embeddings: tuple[str, ...] = ()
    """Embeddings of images that can be compared with those of captions."""


def embed_stream(inputs: EmbedInputs, missing: Sequence[range]) -> Dataset:
    """Dataset with one row per written file: the number of `rows`, and the `errors` of bad ones.

    Args:
        inputs: the same inputs that gave `missing`.
        missing: chunks of each file that is missing.
    """

    config, index = inputs.config, opened_index(inputs.index_uri)
    chunks = pa.table({"chunk": np.concatenate([np.arange(file.start, file.stop) for file in missing])})
    decode: Any = partial(_decoded, inputs=inputs)
    write: Any = partial(_written, inputs=inputs)
    stream = (
        handed_out(chunks, -(-chunks.num_rows // MOST_BLOCKS))
        .map_batches(
            decode,
            batch_size=1,
            batch_format="numpy",
            compute=TaskPoolStrategy(min(READERS_PER_CPU * config.data_cpus, chunks.num_rows)),
            num_cpus=1 / READERS_PER_CPU,
        )
        .map_batches(
            EmbedActor,
            fn_constructor_kwargs={"inputs": inputs},
            batch_size=1,
            batch_format="pyarrow",
            compute=ActorPoolStrategy(min_size=1, max_size=config.actors),
            num_cpus=config.cpus_per_actor,
            num_gpus=config.gpus_per_actor,
        )
        .map_batches(
            write,
            batch_size=chunks_per_file(index, inputs.layout.row_bytes),
            batch_format="pyarrow",
            compute=TaskPoolStrategy(min(WRITERS, len(missing))),
            num_cpus=WRITE_CPUS / WRITERS,
        )
    )
    return in_order(stream)


def _decoded(batch: dict[str, np.ndarray], inputs: EmbedInputs) -> Iterator[pa.Table]:
    index = opened_index(inputs.index_uri)
    for chunk in batch["chunk"].tolist():
        yield decoded_chunk(index, chunk, inputs.encoder.image_size_px, inputs.config).table()


def _written(table: pa.Table, inputs: EmbedInputs) -> pa.Table:
    """Write a batch, which is a whole file, into the folder."""
    index, chunks = opened_index(inputs.index_uri), table["chunk"].to_pylist()
    _require_file(chunks, chunks_per_file(index, inputs.layout.row_bytes), len(index.chunks.rows))
    rows = pa.concat_tables([pa.ipc.open_stream(part.as_buffer()).read_all() for part in table["rows"]])
    errors = [error for error in rows["error"].to_pylist() if error]
    _require_images(errors, rows.num_rows, inputs.config.max_bad_fraction)
    inputs.folder.write(file_name(index, chunks), rows)
    return pa.table([[rows.num_rows], [errors]], schema=_WRITTEN)


def _require_images(errors: list[str], rows: int, most: float) -> None:
    """Raise if too many rows have no image: the storage may be away, and a written file is never corrected."""
    if len(errors) > most * rows:
        raise StorageError(
            f"{len(errors)} of {rows} rows of a file have no image, e.g. {errors[0]}; see whether the images are still "
            f"there, or raise max_bad_fraction ({most:g}) if the data are so"
        )


def _require_file(chunks: list[int], step: int, total: int) -> None:
    """Raise if `chunks` are not exactly those of one file, because the file's name states its samples."""
    start = chunks[0]
    if start % step or chunks != list(range(start, min(start + step, total))):
        raise RuntimeError(f"chunks {chunks} came together, which are no file; this is a fault of tips_ray")


class EmbedActor:
    """Actor with one encoder, on a GPU if the actor holds a share of one."""

    def __init__(self, inputs: EmbedInputs) -> None:
        from tips_ray.embedding.embedder import Embedder  # imports torch, which readers and planners do not need
        from tips_ray.evaluation.load_encoder import placed_encoder

        config = inputs.config
        encoder = placed_encoder(inputs.encoder, config.cpus_per_actor, config.gpus_per_actor)
        self.size_px = encoder.image_size_px
        self.embedder = Embedder(encoder, inputs.layout, opened_index(inputs.index_uri), config.batch_images)

    def __call__(self, table: pa.Table) -> pa.Table:
        chunks = [DecodedChunk.of_row(row, self.size_px) for row in table.to_pylist()]
        rows = [_stream_bytes(self.embedder(chunk)) for chunk in chunks]
        return pa.table([[chunk.number for chunk in chunks], rows], schema=ENCODED)


def _stream_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()
