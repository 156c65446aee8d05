"""Decoded chunks -> rows of embeddings, by an encoder that stays."""

import pyarrow as pa

from tips_ray.data.index import opened_index
from tips_ray.embedding.decoded import DecodedChunk
from tips_ray.embedding.embed_pipeline import ENCODED, EmbedInputs
from tips_ray.embedding.embedder import Embedder


class EmbedActor:
    """One encoder; on a GPU where it holds a share of one."""

    def __init__(self, inputs: EmbedInputs) -> None:
        config = inputs.config
        encoder = inputs.encoder.load(config.cpus_per_actor, config.gpus_per_actor)
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
