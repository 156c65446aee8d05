"""Decoded chunks -> rows of embeddings. N rows of a chunk, G good ones, S side of images, D width, T texts."""

from collections.abc import Iterable, Sequence

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from tips_ray.config.embedding import EmbeddingConfig
from tips_ray.data.index import Index
from tips_ray.embedding.decoded import DecodedChunk
from tips_ray.embedding.layout import SYNTHETIC, WEB, Layout, arrays, lists_of_arrays
from tips_ray.evaluation.encoders import Encoder, Features, device_of, in_unit_range


class Embedder:
    """A frozen encoder and the layout of the rows made from its outputs."""

    def __init__(self, encoder: Encoder, layout: Layout, index: Index, batch_images: int) -> None:
        self.encoder, self.layout, self.index, self.batch_images = encoder, layout, index, batch_images
        self.device = device_of(encoder.networks[0])

    def __call__(self, chunk: DecodedChunk) -> pa.Table:
        """One output row per row of the chunk, also for rows with a bad image."""
        place, count = self.index.chunk(chunk.number), len(chunk.keys)
        shard, _ = self.index.shard(int(self.index.chunks.shard[chunk.number]))
        columns = {
            "sample_id": range(place.first_sample, place.first_sample + count),
            "key": chunk.keys,
            "shard": [shard.path] * count,
            "row": range(place.row, place.row + count),
            **self._image_columns(chunk),
            **(self._caption_columns(chunk) if self.layout.text_width else {}),
            "error": chunk.errors,
        }
        return pa.table(columns, schema=self.layout.schema)

    def _image_columns(self, chunk: DecodedChunk) -> dict[str, pa.Array]:
        batches = torch.from_numpy(chunk.pixels_GSS3.copy()).split(self.batch_images)
        found = [self._embedded(images_BSS3) for images_BSS3 in batches if len(images_BSS3)]
        columns = {}
        for name, shape in self.layout.images.items():
            values_GX = np.concatenate([part[name] for part in found]) if found else self._none(shape)
            columns[name] = arrays(values_GX, chunk.is_good_N.tolist())
        return columns

    def _embedded(self, images_BSS3: Tensor) -> dict[str, np.ndarray]:
        features = self.encoder.features(in_unit_range(images_BSS3.to(self.device)))
        kept = _kept(features, list(self.layout.images))
        return {name: value.float().cpu().numpy().astype(self.layout.dtype) for name, value in kept.items()}

    def _caption_columns(self, chunk: DecodedChunk) -> dict[str, pa.Array]:
        """Caption embeddings, also for rows with a bad image."""
        has_web_N = [bool(text) for text in chunk.web_captions]
        web_TD = self._texts([text for text in chunk.web_captions if text])
        synthetic_TD = self._texts([text for texts in chunk.synthetic_captions for text in texts])
        counts = [len(texts) for texts in chunk.synthetic_captions]
        return {WEB: arrays(web_TD, has_web_N), SYNTHETIC: lists_of_arrays(synthetic_TD, counts)}

    def _texts(self, texts: Sequence[str]) -> np.ndarray:
        if not texts:
            return self._none((self.layout.text_width or 0,))
        return self.encoder.texts(texts).numpy().astype(self.layout.dtype)

    def _none(self, shape: Sequence[int]) -> np.ndarray:
        return np.empty((0, *shape), self.layout.dtype)


def layout_of(encoder: Encoder, config: EmbeddingConfig) -> Layout:
    """Layout of this encoder's outputs, found by encoding one image.

    Raises:
        ValueError: captions are to be embedded, but the encoder reads no texts.
    """
    if config.captions and not encoder.text_embeddings:
        raise ValueError("captions=true needs an encoder that reads texts: MODEL has no text tower, or no vocabulary")
    side = encoder.image_size_px
    features = encoder.features(torch.zeros(1, 3, side, side))
    wanted = [*encoder.embeddings, *({"mean": ["patches_mean"], "all": ["patches"]}.get(config.patches or "", []))]
    images = {name: tuple(value.shape[1:]) for name, value in _kept(features, wanted).items()}
    text_width = encoder.texts(["a"]).shape[1] if config.captions else None
    return Layout(images, text_width, config.dtype)


def _kept(features: Features, names: Iterable[str]) -> dict[str, Tensor]:
    """The named features; `patches_mean` is the mean over an image's patches, in their dtype."""
    makers = {"patches_mean": lambda: features.patches_BLD.mean(1), "patches": lambda: features.patches_BLD}
    return {name: makers[name]() if name in makers else features.embeddings[name] for name in names}
