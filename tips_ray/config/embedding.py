"""Config of `tips-ray embed`: the source, the outputs to keep, and the resources."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from tips_ray.config.run import DataConfig, Share, SourceConfig
from tips_ray.config.schema import Schema


class EmbeddingConfig(Schema):
    """Embeddings of every row of a source."""

    source: SourceConfig
    """SOURCE of the command, with its format and columns; `weight` is ignored."""
    index: str | None = None
    """Folder of an existing index of the source; None: the index is kept below OUT."""
    image_size_px: PositiveInt | None = None
    """Side of the square that whole images are squashed to; None: the encoder's native size."""
    patches: Literal["mean", "all"] | None = None
    """Patch tokens to keep beside the embeddings: their mean, or all of them; None: none."""
    captions: bool = False
    """Whether to embed the captions in the data as well; the encoder must read texts."""
    dtype: Literal["float32", "float16"] = "float32"
    """Stored dtype. The encoder computes in fp32."""
    batch_images: PositiveInt = 64
    """Most images in a forward pass; never more than a chunk."""
    chunk_rows: PositiveInt = 64
    """Consecutive rows of a shard that are read together."""
    max_image_bytes: PositiveInt = DataConfig.model_fields["max_image_bytes"].default
    """A larger file is a bad row."""
    max_image_pixels: PositiveInt = DataConfig.model_fields["max_image_pixels"].default
    """A larger image is a bad row; its pixels are never decoded."""
    actors: PositiveInt = 1
    """Most concurrent encoders."""
    cpus_per_actor: NonNegativeFloat = 1
    """CPU threads of each encoder."""
    gpus_per_actor: NonNegativeFloat = 0
    max_bad_fraction: Share = 0.5
    """(D) Largest share of bad rows in a file. With more, the file is not written and the command stops, because the
    storage of the images is probably away."""
    data_cpus: PositiveInt = 1
    """CPUs that read and decode images."""

    @property
    def data(self) -> DataConfig:
        """Config of the source's index. Without `captions` and `index`, it looks for no caption columns not given."""
        source, columns = self.source, self.source.columns
        if not self.captions and self.index is None:
            none = {"web_caption": columns.web_caption or "", "synthetic_captions": columns.synthetic_captions or ()}
            source = source.model_copy(update={"columns": columns.model_copy(update=none)})
        return DataConfig(
            sources=(source,),
            index=self.index,
            chunk_rows=self.chunk_rows,
            max_image_bytes=self.max_image_bytes,
            max_image_pixels=self.max_image_pixels,
        )
