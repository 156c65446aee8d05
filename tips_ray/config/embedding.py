"""The config of `tips-ray embed`: the source, what is kept of every row, and who works on it."""

from typing import Literal

from pydantic import NonNegativeFloat, PositiveInt

from tips_ray.config.run import DataConfig, Share, SourceConfig
from tips_ray.config.schema import Schema


class EmbeddingConfig(Schema):
    """Embeddings of every row of a source."""

    source: SourceConfig
    """What the command names as SOURCE, with its format and columns; `weight` means nothing here."""
    index: str | None = None
    """Folder of an index of the source that was made before; None: it is kept below OUT."""
    image_size_px: PositiveInt | None = None
    """Side of the square that whole images are squashed to; None: the encoder's own."""
    patches: Literal["mean", "all"] | None = None
    """Patch tokens beside the embeddings: their mean, or every one of them; None: neither."""
    captions: bool = False
    """Embed the captions that the data hold as well; the encoder must read texts."""
    dtype: Literal["float32", "float16"] = "float32"
    """What numbers are kept as. The encoder computes in fp32."""
    batch_images: PositiveInt = 64
    """Most images of a forward pass; never more than a chunk."""
    chunk_rows: PositiveInt = 64
    """Consecutive rows of a shard that are read together."""
    max_image_bytes: PositiveInt = DataConfig.model_fields["max_image_bytes"].default
    """A larger file is a bad row."""
    max_image_pixels: PositiveInt = DataConfig.model_fields["max_image_pixels"].default
    """A larger image is a bad row; its pixels are never decoded."""
    actors: PositiveInt = 1
    """Most encoders that work at a time."""
    cpus_per_actor: NonNegativeFloat = 1
    """Threads of each of them."""
    gpus_per_actor: NonNegativeFloat = 0
    max_bad_fraction: Share = 0.5
    """(D) Of the rows of a file; with more bad ones it is not written and all stops, since then it is rather the
    storage of the images that is away than so many of them."""
    data_cpus: PositiveInt = 1
    """CPUs that read and decode images."""

    @property
    def data(self) -> DataConfig:
        """The source as an index knows it; where captions are not embedded it needs none."""
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
